package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/syncdir"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// An intent is a file with the name of a volume that is about to be made. It is empty, or holds the full name of the snapshot
// that is about to be taken of a foreign dataset for the volume alone. The kernel first makes a dataset, and
// then gives it its properties (zfs_ioc_create and zfs_ioc_clone in module/zfs/zfs_ioctl.c). markProperty is among the
// last of these. A power cut in between leaves a dataset without it. Only the intent tells this dataset from the
// datasets of others.

// intend records that a claimed volume is about to be made, so that the record survives a power cut. origin is the snapshot
// to be taken of a foreign dataset, or "". The caller calls forget when the volume was made, or could not be made. An intent
// that was left is ended first, because it may name another snapshot.
func (b *Backend) intend(ctx context.Context, name, origin string) error {
	err := b.record(ctx, name, origin)
	if errors.Is(err, fs.ErrExist) && !isLost(err) {
		if _, err := b.endIntent(ctx, name); err != nil {
			return fmt.Errorf("end the interrupted creation: %w", err)
		}
		err = b.record(ctx, name, origin)
	}
	return err
}

func (b *Backend) record(ctx context.Context, name, origin string) error {
	path := filepath.Join(b.intents, name)
	return b.change(ctx, step{
		op:       "record",
		do:       func(kernel) error { return fault.OfOwnFile(writeIntent(path, origin)) },
		happened: isPresent(path),
		undo:     func(context.Context) error { return removeIntent(path) },
	})
}

func writeIntent(path, origin string) error {
	f, err := os.OpenFile(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(origin)
	if err := errors.Join(err, f.Sync(), f.Close(), syncdir.Sync(filepath.Dir(path))); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func removeIntent(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) { // another caller made the same volume, and was faster
		return nil
	}
	return err
}

// forget deletes the record that a volume is about to be made. A record that stays is in nobody's way, and the next start
// deletes it.
func (b *Backend) forget(name string) {
	ctx, cancel := b.ending()
	defer cancel()
	path := filepath.Join(b.intents, name)
	err := b.change(ctx, step{op: "forget", do: func(kernel) error { return removeIntent(path) }, happened: isAbsentAt(path)})
	if err != nil {
		b.log.Warn("zfs: the record of a volume that was about to be made is left over", "path", path, "error", err)
	}
}

// intent is the record of a volume that was about to be made.
type intent struct {
	made time.Time
	// origin is the snapshot of a foreign dataset. A name that a power cut has cut off is "": the snapshot is taken later than
	// the intent is complete.
	origin string
}

func (b *Backend) readIntent(ctx context.Context, name string) (intent, error) {
	return read(ctx, b.zfs, "read record", func(kernel) (i intent, err error) {
		f, err := os.OpenFile(filepath.Join(b.intents, name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return i, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return i, err
		}
		data, err := io.ReadAll(io.LimitReader(f, zfsctl.MaxName+1))
		if origin := string(data); strings.HasPrefix(origin, b.zfs.pool+"/") && cloneSnapshot.MatchString(origin) {
			i.origin = origin
		}
		i.made = info.ModTime()
		return i, err
	})
}

// cloneSnapshot is the form of the name of a snapshot that is taken for one clone.
var cloneSnapshot = regexp.MustCompile(`^[^@]+@` + clonePrefix + `[^@/]+$`)

// intentFor is the longest time from an intent to the creation of its dataset. Older and younger datasets are those of
// others.
const intentFor = time.Minute

// isHalfMade reports whether a dataset was left half-made, by the process that made an intent at that time.
func isHalfMade(d dataset, intent time.Time) bool {
	since := intent.Truncate(time.Second) // as exact as the time of a dataset
	return !d.marked && !d.created.Before(since) && d.created.Before(since.Add(intentFor))
}

// destroyHalfMade destroys the datasets without markProperty that were about to be made when a process or the machine
// ended. It deletes them from datasets, and deletes the intents. The intent of a dataset that cannot be destroyed
// stays.
func (b *Backend) destroyHalfMade(ctx context.Context, datasets map[string]dataset, warn func(what string, err error)) {
	entries, err := b.files(ctx, b.intents)
	if err != nil {
		warn(b.intents, err)
	}
	for _, entry := range entries {
		name := entry.Name()
		gone, err := b.endIntent(ctx, name)
		if err != nil {
			warn(b.datasetOf(name), err)
		}
		if gone {
			delete(datasets, name)
		}
	}
}

// endIntent destroys the dataset of an intent if it was left half-made, and the snapshot that was taken for it unless it has
// clones. Then it deletes the intent. The caller has claimed the volume, or is alone. The kernel describes the dataset: the
// index may still have it as it was while it was being made.
func (b *Backend) endIntent(ctx context.Context, name string) (gone bool, err error) {
	intent, err := b.readIntent(ctx, name)
	if errors.Is(err, fs.ErrNotExist) { // its maker has deleted it
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d, err := b.stats(ctx, b.datasetOf(name))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, err
	}
	if err == nil && isHalfMade(describe(name, d), intent.made) {
		if err := errors.Join(b.unmountDataset(ctx, d.Name), b.discard(ctx, d.Name)); err != nil {
			return false, err
		}
		gone = true
		b.volumes.drop(name)
	}
	if intent.origin != "" {
		if err := b.discardUncloned(ctx, intent.origin); err != nil {
			return gone, err
		}
	}
	return gone, b.zfs.ask(ctx, "forget", func() error { return removeIntent(filepath.Join(b.intents, name)) })
}
