package btrfsctl_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestCommitAtOnce: commits at the same time as others end soon. The kernel forgets some, and would make them after its interval.
func TestCommitAtOnce(t *testing.T) {
	mnt, fd := quotaFS(t)
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, "commit=300"))
	var mu sync.Mutex
	var slowest time.Duration
	var group errgroup.Group
	end := time.Now().Add(3 * time.Second)
	for worker := range 8 {
		group.Go(func() error {
			for i := 0; time.Now().Before(end); i++ {
				name := filepath.Join(mnt, fmt.Sprintf("file%d-%d", worker, i))
				if err := os.WriteFile(name, []byte("data"), 0o600); err != nil {
					return err
				}
				if worker%2 == 0 { // a commit by this thread itself
					if err := syncFile(name); err != nil {
						return err
					}
				}
				begun := time.Now()
				if err := btrfsctl.Commit(fd); err != nil {
					return err
				}
				mu.Lock()
				slowest = max(slowest, time.Since(begun))
				mu.Unlock()
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	assert.Less(t, slowest, testfs.Patience)
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return btrfsctl.WakeCleaner(int(f.Fd()))
}
