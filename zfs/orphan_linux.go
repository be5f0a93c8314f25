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

// A zfs process lives on when the process that has run it is killed, and changes things still. Each inherits the file
// running, which who runs it holds locked shared, so that the lock is held to the end of the last.

// orphansFor is for how long those are waited for: a suspended pool keeps them for ever.
const orphansFor = 30 * time.Second

func (l layout) openRunning() (*os.File, error) {
	return os.OpenFile(filepath.Join(l.home, runningName), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
}

// awaitOrphans waits, while nobody else has the home open, for the zfs processes of those who had.
func (c *commands) awaitOrphans(ctx context.Context) error {
	err := poll.WhileBusy(ctx, patient(orphansFor), func() (busy bool, err error) {
		alone, err := flock.TryExclusive(c.running)
		return !alone, err
	})
	if err != nil {
		return fmt.Errorf("zfs processes of one that has ended: %w", err)
	}
	return nil
}
