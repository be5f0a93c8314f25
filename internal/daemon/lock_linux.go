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
)

// lockName is the file in the root that the daemon holds a lock on. The command does not look at it.
const lockName = "serve.lock"

// lockRoot makes sure that this is the only daemon of the root. Closing the file ends that, as does the end of the
// process. errdefs.ErrFailedPrecondition: another daemon has the root.
func lockRoot(root string) (_ *os.File, err error) {
	f, err := os.OpenFile(filepath.Join(root, lockName), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("another daemon%s uses %s: %w", holderOf(f), root, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	// The number is for people; what counts is the lock.
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return f, err
}

// holderOf is what the lock file says of the process that holds it, "" if it says nothing.
func holderOf(f *os.File) string {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	pid, parseErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || parseErr != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}
