package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A zfs process lives on when the process that has run it is killed, and changes things still. Each inherits the file
// running, which who runs it holds locked shared, so that the lock is held to the end of the last.

// orphansFor is for how long those are waited for: a suspended pool keeps them for ever.
const orphansFor = 30 * time.Second

func (l layout) openRunning() (*os.File, error) {
	return os.OpenFile(filepath.Join(l.home, runningName), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
}

// awaitOrphans waits, while nobody else has the home open, for the zfs processes of those who had.
func (c *commands) awaitOrphans(ctx context.Context) error {
	err := whileBusy(ctx, orphansFor, func() (busy bool, err error) {
		err = unix.Flock(int(c.running.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		return errors.Is(err, unix.EWOULDBLOCK), err
	})
	if err != nil {
		return fmt.Errorf("zfs processes of one that has ended: %w", err)
	}
	return nil
}
