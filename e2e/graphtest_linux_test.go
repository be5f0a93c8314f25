package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
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
			graphtest.Run(t, s.config())
		}
	})
}

// allShared gives each clone a shared root, whatever its caller asks for, unless somebody writes to the source.
type allShared struct{ cowcommon.Backend }

// Unwrap returns the Backend inside.
func (b allShared) Unwrap() cowcommon.Backend { return b.Backend }

// Clone clones with a shared root if that is possible.
func (b allShared) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	shared := opts
	shared.RootStyle = cowcommon.SharedRoot
	err := b.Backend.Clone(ctx, name, source, shared)
	if errdefs.IsFailedPrecondition(err) {
		return b.Backend.Clone(ctx, name, source, opts)
	}
	return err
}

func BenchmarkGraph(b *testing.B) {
	for _, s := range systems() {
		b.Run(s.name, func(b *testing.B) { graphtest.RunBenchmarks(b, s.config(), 1000, 10000) })
	}
}

// config declares the functions of a Cowshed driver.
func (s system) config() graphtest.Config {
	var roots sync.Map // of drivers
	open := func(t testing.TB, root string, idMap user.IdentityMapping) graphdriver.Driver {
		d := s.open(t, root, idMap)
		if s.shared {
			d = cowdriver.New(s.driver, allShared{d.Backend()}, cowdriver.Options{IDMap: idMap})
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
