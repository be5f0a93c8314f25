package zfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/poll"
)

// A zfs process lives on when the process that ran it is killed, and may still change things. Each zfs process inherits
// the file running, on which the process that runs it has a shared lock. So the lock stays until the last zfs process
// has ended.

// orphansFor is how long awaitOrphans waits: a suspended pool keeps zfs processes for ever.
const orphansFor = 30 * time.Second

func (l layout) openRunning() (*os.File, error) {
	return os.OpenFile(filepath.Join(l.home, runningName), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
}

// awaitOrphans waits for the zfs processes of Backends that are gone. No other Backend has the home open meanwhile.
func (c *commands) awaitOrphans(ctx context.Context) error {
	err := poll.WhileBusy(ctx, patient(orphansFor), func() (busy bool, err error) {
		alone, err := flock.TryExclusive(c.running)
		return !alone, err
	})
	if err != nil {
		return fmt.Errorf("wait for zfs processes of a process that has ended: %w", err)
	}
	return nil
}
