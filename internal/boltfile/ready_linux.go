package boltfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// makeReady makes the file. A file that is not overwritten in place is replaced by a copy that is. If that is not
// possible, for want of space or since the filesystem has no such files, the file stays as it is.
func makeReady(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return create(path)
	}
	if err != nil {
		return err
	}
	inPlace, err := btrfsctl.OverwritesInPlace(f)
	if err == nil && !inPlace && onBtrfs(f) {
		_ = replace(path, f) // it works without, too
	}
	return f.Close()
}

func onBtrfs(f *os.File) bool {
	var stat unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &stat) == nil && stat.Type == unix.BTRFS_SUPER_MAGIC
}

// create makes an empty file, which bolt fills.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if onBtrfs(f) {
		_ = btrfsctl.OverwriteInPlace(f) // it works without, too
	}
	return errors.Join(f.Close(), syncdir.Sync(filepath.Dir(path)))
}

// replace puts a copy in the place of a file, with bolt's lock on it, so that nobody changes it meanwhile.
func replace(path string, f *os.File) (err error) {
	if ok, err := flock.TryExclusive(f); !ok {
		return err // bolt says that it is locked when it opens it
	}
	defer func() { err = errors.Join(err, flock.Unlock(f)) }()
	to, err := os.OpenFile(path+".copy", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(to.Name()))
		}
		err = errors.Join(err, to.Close())
	}()
	if err := btrfsctl.OverwriteInPlace(to); err != nil {
		return err
	}
	size, err := io.Copy(to, f)
	if err != nil {
		return err
	}
	if err := writeZeros(to, size, size+reserve); err != nil {
		return err
	}
	if err := os.Rename(to.Name(), path); err != nil {
		return err
	}
	return syncdir.Sync(filepath.Dir(path))
}
