package plugin

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/graphtest"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// openBtrfs opens the btrfs driver as an engine asks.
func openBtrfs(request InitRequest) (graphdriver.Driver, error) {
	return btrfs.Init(request.Home, request.Options, request.IDMap())
}

// TestGraphDriver runs the conformance suite through the protocol, over a real btrfs.
func TestGraphDriver(t *testing.T) {
	testfs.Root(t)
	mnt := testfs.Btrfs(t, testfs.WithSize(8<<30))
	var homes sync.Map // of engines
	open := func(t testing.TB, home string, idMap user.IdentityMapping) graphdriver.Driver {
		e := serveAdapter(t, openBtrfs)
		manifest, err := e.activate()
		require.NoError(t, err)
		assert.Equal(t, []string{"GraphDriver"}, manifest)
		require.NoError(t, e.init(home, nil, idMap))
		homes.Store(e, home)
		t.Cleanup(func() { assert.NoError(t, e.Cleanup()) })
		return e
	}
	home := func(t testing.TB) string {
		dir, err := os.MkdirTemp(mnt, "docker-")
		require.NoError(t, err)
		return filepath.Join(dir, "cowshed")
	}
	graphtest.Run(t, graphtest.Config{
		New: func(t testing.TB) graphdriver.Driver { return open(t, home(t), user.IdentityMapping{}) },
		NewIDMapped: func(t testing.TB, idMap user.IdentityMapping) graphdriver.Driver {
			return open(t, home(t), idMap)
		},
		Reopen: func(t testing.TB, d graphdriver.Driver) graphdriver.Driver {
			home, ok := homes.Load(d)
			require.True(t, ok)
			require.NoError(t, d.(*engine).init(home.(string), nil, user.IdentityMapping{}), "Init once more, without Cleanup")
			return d
		},
		NestedVolume: func(t testing.TB, path string) {
			dir, err := os.Open(filepath.Dir(path))
			require.NoError(t, err)
			defer dir.Close()
			require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), filepath.Base(path), nil))
		},
		Quota:        true,
		SealsParents: true,
		SeesWrites:   true,
		FrozenDiff:   true,
	})
	// If the kernel was still destroying subvolumes when a driver was closed, the next driver there clears up.
	testfs.WaitDeleted(t, mnt)
	homes.Range(func(_, home any) bool {
		d, err := openBtrfs(InitRequest{Home: home.(string)})
		require.NoError(t, err)
		require.NoError(t, d.Cleanup())
		return true
	})
	assert.Empty(t, testfs.StaleQgroups(t, mnt))
}
