package e2e

import (
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestForkKeepsNoLock forks, as it were, while a layer is in use and while the home is open. Locks given back
// afterwards are free at once, although the child has the locked files open.
func TestForkKeepsNoLock(t *testing.T) {
	t.Parallel()
	inEachOwn(t, func(t *testing.T, s system) {
		root := s.root(t)
		d, err := s.tryOpen(root, user.IdentityMapping{})
		require.NoError(t, err)
		require.NoError(t, d.Create("base", "", nil))
		require.NoError(t, d.CreateReadWrite("layer", "base", nil))
		get(t, d, "layer")
		require.Positive(t, testfs.Fork(t, root))
		require.NoError(t, d.Put("layer"))
		assert.NoError(t, d.Remove("layer"))
		require.NoError(t, d.Cleanup())
		assertNothingLeft(t, s, root, []string{"base"})
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(root, s.driver)))
		require.NoError(t, err)
		assert.Empty(t, mounts, "the last to close unmounts")
	})
}

// TestForksBesideUse uses and removes layers while this process starts others without end.
func TestForksBesideUse(t *testing.T) {
	t.Parallel()
	inEachOwn(t, func(t *testing.T, s system) {
		root := s.root(t)
		d := s.open(t, root, user.IdentityMapping{})
		require.NoError(t, d.Create("base", "", nil))
		rounds, starters := 50, 4
		if s.driver == "zfs" { // the test machine has one processor, and each operation starts processes of its own
			rounds, starters = 5, 1
		}
		stop := make(chan struct{})
		var forks sync.WaitGroup
		defer forks.Wait()
		defer close(stop)
		for range starters {
			forks.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						assert.NoError(t, exec.Command("true").Run())
					}
				}
			})
		}
		for range rounds {
			require.NoError(t, d.CreateReadWrite("layer", "base", nil))
			get(t, d, "layer")
			require.NoError(t, d.Put("layer"))
			require.NoError(t, d.Remove("layer"))
		}
	})
}
