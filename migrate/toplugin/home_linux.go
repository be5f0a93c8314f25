package toplugin

import (
	"errors"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/homedir"
)

// checkHome returns ErrFailedPrecondition if a process has the home open.
func checkHome(home string) (err error) {
	f, err := os.OpenFile(homedir.LockFile(home), unix.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	free, err := flock.TryExclusive(f)
	if err == nil && !free {
		err = fault.New(errdefs.ErrFailedPrecondition, "a process has %s open: stop the engine and the plugin (cowshed serve) first", home)
	}
	return errors.Join(err, flock.Release(f))
}
