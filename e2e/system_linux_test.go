package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	_ "github.com/cowshed/cowshed/zfs"
)

// system is a driver on a filesystem in one state.
type system struct {
	name    string
	driver  string
	options []string
	// root makes a filesystem for one test and returns a directory on it.
	root func(t testing.TB) string
	// asAnother: it is as another system except for the scope of limits, and tested for limits only.
	asAnother bool
	// shared: containers have shared roots.
	shared bool
}

// systems are the systems under test: btrfs in every quota mode or, where a pool is given, ZFS.
func systems() []system {
	if pool := os.Getenv(testfs.ZpoolEnv); pool != "" && pool != testfs.ZpoolElsewhere {
		return []system{
			{name: "zfs", driver: "zfs", root: zfsRoot},
			{name: "zfs-total", driver: "zfs", options: []string{"zfs.quota_scope=total"}, root: zfsRoot, asAnother: true},
		}
	}
	return []system{
		{name: "btrfs-simple", driver: "btrfs", options: []string{"btrfs.quota=simple"}, root: btrfsRoot()},
		{name: "btrfs-classic", driver: "btrfs", options: []string{"btrfs.quota=classic"}, root: btrfsRoot(testfs.WithClassicQuota())},
		{name: "btrfs-total", driver: "btrfs", options: []string{"btrfs.quota=classic", "btrfs.quota_scope=total"}, root: btrfsRoot(testfs.WithClassicQuota())},
		{name: "btrfs-off", driver: "btrfs", options: []string{"btrfs.quota=off"}, root: btrfsRoot()},
	}
}

// sharedSystems are systems whose containers have shared roots.
func sharedSystems() []system {
	if pool := os.Getenv(testfs.ZpoolEnv); pool != "" && pool != testfs.ZpoolElsewhere {
		return []system{{name: "zfs-shared", driver: "zfs", options: []string{"zfs.root_style=shared"}, root: zfsRoot, shared: true}}
	}
	return []system{{
		name: "btrfs-shared", driver: "btrfs", options: []string{"btrfs.quota=simple", "btrfs.root_style=shared"}, root: btrfsRoot(), shared: true,
	}}
}

// systemNamed is one of all systems, in the process of a victim.
func systemNamed(name string) system {
	all := append(systems(), sharedSystems()...)
	return all[slices.IndexFunc(all, func(s system) bool { return s.name == name })]
}

func btrfsRoot(opts ...testfs.BtrfsOption) func(testing.TB) string {
	return func(t testing.TB) string { return filepath.Join(testfs.Btrfs(t, opts...), "root") }
}

func zfsRoot(t testing.TB) string {
	_, mountpoint := testfs.ZFS(t)
	return mountpoint
}

func inEachSystem(t *testing.T, test func(t *testing.T, s system)) {
	for _, s := range systems() {
		t.Run(s.name, func(t *testing.T) { test(t, s) })
	}
}

// inEachOwn is inEachSystem without those that are as others except for limits.
func inEachOwn(t *testing.T, test func(t *testing.T, s system)) {
	inEachSystem(t, func(t *testing.T, s system) {
		if !s.asAnother {
			test(t, s)
		}
	})
}

// inEachShared is inEachSystem for those with shared roots.
func inEachShared(t *testing.T, test func(t *testing.T, s system)) {
	for _, s := range sharedSystems() {
		t.Run(s.name, func(t *testing.T) { test(t, s) })
	}
}

// open opens the driver on root and closes it at the end of the test.
func (s system) open(t testing.TB, root string, idMap user.IdentityMapping) *cowdriver.Driver {
	t.Helper()
	d, err := s.tryOpen(root, idMap)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
	return d
}

func (s system) tryOpen(root string, idMap user.IdentityMapping) (*cowdriver.Driver, error) {
	d, err := graphdriver.New(s.driver, graphdriver.Options{Root: root, DriverOptions: s.options, IDMap: idMap})
	if err != nil {
		return nil, err
	}
	return d.(*cowdriver.Driver), nil
}

// slow reports whether a test may choose a few of its many repetitions: on ZFS each operation takes tenths of a
// second in the test machine. The long variants do all of it there too.
func (s system) slow() bool { return s.driver == "zfs" && !testfs.Long() }

func (s system) limits() bool { return s.name != "btrfs-off" }

func (s system) countsImage() bool { return s.name == "btrfs-total" || s.name == "zfs-total" }
