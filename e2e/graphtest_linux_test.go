package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
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
