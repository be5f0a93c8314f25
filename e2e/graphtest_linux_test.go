package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	cowfault "github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/graphdriver/graphtest"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// TestGraph runs the conformance suite.
func TestGraph(t *testing.T) {
	inEachSystem(t, func(t *testing.T, s system) {
		if !s.asAnother {
			graphtest.Run(t, s.config())
			return
		}
		for _, test := range graphtest.Tests() {
			if strings.HasPrefix(test.Name, "Quota") || strings.HasPrefix(test.Name, "Options") || test.Name == "ReopenLimits" {
				t.Run(test.Name, func(t *testing.T) { test.Run(t, s.config()) })
			}
		}
	})
}

// TestGraphShared runs the conformance suite with shared roots for all layers that have a parent.
func TestGraphShared(t *testing.T) {
	inEachShared(t, func(t *testing.T, s system) {
		if s.driver != "btrfs" { // TestGraph of package sharedroot runs it there
			counts := &cloneCounts{}
			t.Cleanup(func() { counts.check(t) })
			graphtest.Run(t, s.configCounting(counts))
		}
	})
}

// allShared gives each clone a shared root, whatever its caller asks for, unless somebody writes to the source: it is mounted, and
// has no shared root itself.
type allShared struct {
	cowcommon.Backend
	counts *cloneCounts

	mu     sync.Mutex
	mounts map[string]int // by volume
}

func newAllShared(b cowcommon.Backend, counts *cloneCounts) *allShared {
	return &allShared{Backend: b, counts: counts, mounts: make(map[string]int)}
}

// Unwrap returns the Backend inside.
func (b *allShared) Unwrap() cowcommon.Backend { return b.Backend }

// Mount counts the mounts of a volume.
func (b *allShared) Mount(ctx context.Context, name, label string) (string, error) {
	b.count(name, 1) // before, so that a mounted volume is counted always
	dir, err := b.Backend.Mount(ctx, name, label)
	if err != nil {
		b.count(name, -1)
	}
	return dir, err
}

// Unmount counts the mounts of a volume.
func (b *allShared) Unmount(ctx context.Context, name string) error {
	err := b.Backend.Unmount(ctx, name)
	if err == nil {
		b.count(name, -1)
	}
	return err
}

// count adds to the mounts of a volume, and returns how many there are.
func (b *allShared) count(name string, n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mounts[name] += n
	return b.mounts[name]
}

// Clone clones with a shared root if that is possible.
func (b *allShared) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	shared := opts
	shared.RootStyle = cowcommon.SharedRoot
	mounted := b.count(source, 0) > 0
	err := b.Backend.Clone(ctx, name, source, shared)
	if errors.Is(err, cowfault.ErrInUse) && (mounted || b.count(source, 0) > 0) {
		b.counts.others.Add(1)
		return b.Backend.Clone(ctx, name, source, opts)
	}
	if err == nil {
		b.counts.shared.Add(1)
	}
	return err
}

// cloneCounts counts the clones of allShared.
type cloneCounts struct{ shared, others atomic.Int64 }

// check checks that most clones were shared. A few, as of a single test, tell nothing.
func (c *cloneCounts) check(t *testing.T) {
	t.Helper()
	shared, others := c.shared.Load(), c.others.Load()
	t.Logf("%d shared clones, %d others", shared, others)
	if shared+others > 20 {
		assert.Greater(t, shared, others, "most clones have shared roots")
	}
}

func BenchmarkGraph(b *testing.B) {
	for _, s := range systems() {
		b.Run(s.name, func(b *testing.B) { graphtest.RunBenchmarks(b, s.config(), 1000, 10000) })
	}
}

// config declares the functions of a Cowshed driver.
func (s system) config() graphtest.Config { return s.configCounting(&cloneCounts{}) }

// configCounting is config of a driver that counts its clones, where they get shared roots.
func (s system) configCounting(counts *cloneCounts) graphtest.Config {
	var roots sync.Map // of drivers
	open := func(t testing.TB, root string, idMap user.IdentityMapping) graphdriver.Driver {
		d := s.open(t, root, idMap)
		if s.shared {
			d = cowdriver.New(s.driver, newAllShared(d.Backend(), counts), cowdriver.Options{IDMap: idMap})
		}
		roots.Store(d, root)
		return d
	}
	config := graphtest.Config{
		New: func(t testing.TB) graphdriver.Driver { return open(t, s.root(t), user.IdentityMapping{}) },
		NewIDMapped: func(t testing.TB, idMap user.IdentityMapping) graphdriver.Driver {
			return open(t, s.root(t), idMap)
		},
		Reopen: func(t testing.TB, d graphdriver.Driver) graphdriver.Driver {
			require.NoError(t, d.Cleanup())
			root, ok := roots.Load(d)
			require.True(t, ok)
			return open(t, root.(string), user.IdentityMapping{})
		},
		Quota:        s.limits(),
		QuotaTotal:   s.countsImage(),
		SealsParents: true,
		SeesWrites:   true,
		FrozenDiff:   true,
		DiffGetter:   true,
		DiffPath:     true,
		CustomImages: true,
		Overlay:      s.shared,
	}
	if s.slow() {
		config.ChainLength = 25
	}
	if s.driver == "btrfs" && !s.shared { // overlayfs passes no ioctl on
		config.NestedVolume = func(t testing.TB, path string) {
			dir, err := os.Open(filepath.Dir(path))
			require.NoError(t, err)
			defer dir.Close()
			require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), filepath.Base(path), nil))
		}
	}
	return config
}
