package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
)

// lockName is the file in the root that names the daemon's process, for people. The lock itself is on the root, and
// needs no file. The command does not look at either.
const lockName = "serve.lock"

// lockRoot makes sure that this is the only daemon of the root. Releasing the file with flock.Release ends that, as
// does the end of the process. Returns errdefs.ErrFailedPrecondition if another daemon has the root.
func lockRoot(root string) (_ *os.File, err error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	name := filepath.Join(root, lockName)
	ok, err := flock.TryExclusive(f)
	if err == nil && !ok {
		err = fault.New(errdefs.ErrFailedPrecondition, "another daemon%s uses %s", holderIn(name), root)
	}
	return f, err
}

// noteHolder writes down which process this is.
func noteHolder(root string) error {
	name := filepath.Join(root, lockName)
	f, err := os.OpenFile(name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return errors.Join(err, f.Close())
}

// holderIn is the file's text about the process that holds the lock, "" if it has none.
func holderIn(name string) string {
	f, err := os.OpenFile(name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 32))
	pid, parseErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || parseErr != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}
