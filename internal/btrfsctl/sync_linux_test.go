package btrfsctl_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestCommitAtOnce: commits at the same time as others end. The kernel forgets some, and would make them at the next interval,
// which is an hour here.
func TestCommitAtOnce(t *testing.T) {
	mnt, fd := quotaFS(t)
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_NOATIME, "commit=3600"))
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
				if err := btrfsctl.Commit(fd); err != nil {
					return err
				}
			}
			return nil
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(testfs.Patience):
		assert.Fail(t, "a commit was forgotten")
		require.Eventually(t, func() bool { // the filesystem is to be unmounted
			assert.NoError(t, btrfsctl.WakeCleaner(fd))
			return len(ended) > 0
		}, testfs.Patience, time.Second)
	}
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return btrfsctl.WakeCleaner(int(f.Fd()))
}
