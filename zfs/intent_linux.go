package zfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/syncdir"
)

// An intent is an empty file with the name of a volume that is about to be made. The kernel makes a dataset first and
// gives it its properties then (zfs_ioc_create and zfs_ioc_clone in module/zfs/zfs_ioctl.c), of which markProperty is
// among the last. A power cut in between leaves a dataset that the intent alone tells from one that others made.

// intend records that a volume is about to be made, so that it survives a power cut. The caller calls made when it is,
// or could not be.
func (l layout) intend(name string) (made func() error, err error) {
	path := filepath.Join(l.intents, name)
	f, err := os.OpenFile(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Sync(), f.Close(), syncdir.Sync(l.intents)); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return func() error {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) { // of two who made the same volume, the other was faster
			return nil
		}
		return err
	}, nil
}

// intentFor is how much later than its intent a dataset may have been created. What is younger or older, others made.
const intentFor = time.Minute

// isHalfMade reports whether a dataset is what an intent of that time has left.
func isHalfMade(d dataset, intent time.Time) bool {
	since := intent.Truncate(time.Second) // as datasets have it
	return !d.marked && !d.created.Before(since) && d.created.Before(since.Add(intentFor))
}

// destroyHalfMade destroys the datasets without markProperty that were about to be made when a process or the machine
// ended, takes them out of datasets, and forgets all intents.
func (b *Backend) destroyHalfMade(ctx context.Context, datasets map[string]dataset, warn func(what string, err error)) {
	entries, err := os.ReadDir(b.intents)
	if err != nil {
		warn(b.intents, err)
	}
	for _, entry := range entries {
		name, path := entry.Name(), filepath.Join(b.intents, entry.Name())
		info, err := entry.Info()
		if err != nil {
			warn(path, err)
			continue
		}
		if d, ok := datasets[name]; ok && isHalfMade(d, info.ModTime()) {
			if err := b.discard(ctx, b.datasetOf(name)); err != nil {
				warn(b.datasetOf(name), err)
				continue
			}
			delete(datasets, name)
			b.volumes.drop(name)
		}
		if err := os.Remove(path); err != nil {
			warn(path, err)
		}
	}
}
