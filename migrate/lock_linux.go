package migrate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
)

// lockFile keeps two migrations with one state apart.
type lockFile struct{ f *os.File }

// lockState makes the directory of the state if it is not there, and locks it. Returns ErrFailedPrecondition if another
// process has it locked.
func lockState(dir string) (*lockFile, error) {
	path := filepath.Join(dir, lockName)
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the end of another migration has deleted the directory
		}
		if err != nil {
			return nil, err
		}
		locked, err := flock.TryExclusive(f)
		if err == nil && !locked {
			err = fault.New(errdefs.ErrFailedPrecondition, "another cowshed migrate is at work, by the lock %s", path)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		named, err := flock.IsAt(f, path)
		if err == nil && named {
			return &lockFile{f}, nil
		}
		if err := errors.Join(err, flock.Release(f)); err != nil { // else another migration has deleted it in its end
			return nil, err
		}
	}
}

// delete deletes the lock, and the directory if there is nothing else in it. The lock is held until release.
func (l *lockFile) delete() error {
	if err := l.deleteFile(); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(l.f.Name())) // of the user: it may have other files
	return nil
}

// deleteFile deletes the lock alone.
func (l *lockFile) deleteFile() error { return os.Remove(l.f.Name()) }

func (l *lockFile) release() error { return flock.Release(l.f) }
