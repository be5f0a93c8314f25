package dockerroot

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// addOthers adds things that a removal leaves alone. check checks that they are there still.
func (s *sample) addOthers() (check func()) {
	outside := s.t.TempDir()
	canary := filepath.Join(outside, "canary")
	require.NoError(s.t, os.WriteFile(canary, nil, 0o644))
	s.Write("volumes/data/_data/file", "")
	s.Write("image/other/layerdb/sha256/x", "")
	for _, name := range []string{s.TreeName(s.web.Mount) + "/link", "image/" + s.Driver + "/link", s.Driver + "/link"} {
		require.NoError(s.t, os.Symlink(outside, s.Path(name)))
	}
	return func() {
		require.FileExists(s.t, canary)
		require.FileExists(s.t, s.Path("volumes/data/_data/file"))
		require.FileExists(s.t, s.Path("containers/"+s.web.ID+"/config.v2.json"))
		require.FileExists(s.t, s.Path("image/other/layerdb/sha256/x"))
	}
}

func TestRemove(t *testing.T) {
	for _, driver := range treeDrivers {
		t.Run(driver, func(t *testing.T) {
			sample := fill(newTestRoot(t, t.TempDir(), driver))
			check := sample.addOthers()
			s := open(t, sample.testRoot)
			require.NoError(t, s.Remove(t.Context()))
			require.NoError(t, s.Remove(t.Context()), "again")
			require.NoDirExists(t, sample.Path(driver))
			require.NoDirExists(t, sample.Path("image/"+driver))
			check()
			inv, err := s.Inventory(t.Context())
			require.NoError(t, err)
			assert.Empty(t, inv.Layers)
			_, err = Open(t.Context(), Options{Dir: sample.Dir, Driver: driver})
			require.ErrorIs(t, err, errdefs.ErrNotFound)
		})
	}
}

// A removal that ends after any step can be repeated by a new source.
func TestRemoveInterrupted(t *testing.T) {
	for n, done := 0, false; !done; n++ {
		sample := fill(newTestRoot(t, t.TempDir(), "overlay2"))
		check := sample.addOthers()
		err := open(t, sample.testRoot).Remove(&countdown{Context: t.Context(), left: n})
		check()
		if done = err == nil; done {
			assert.Greater(t, n, 10)
			continue
		}
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, open(t, sample.testRoot).Remove(t.Context()))
		require.NoDirExists(t, sample.Path("overlay2"))
		require.NoDirExists(t, sample.Path("image/overlay2"))
	}
}

// A directory of the root may be a link to elsewhere.
func TestRemoveHostile(t *testing.T) {
	for _, driver := range treeDrivers {
		for _, name := range []string{driver, "image/" + driver, "image"} {
			sample := fill(newTestRoot(t, t.TempDir(), driver))
			s := open(t, sample.testRoot)
			outside := filepath.Join(t.TempDir(), "moved")
			require.NoError(t, os.Rename(sample.Path(name), outside))
			require.NoError(t, os.Symlink(outside, sample.Path(name)))
			before := count(t, outside)
			require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrInvalidArgument, name)
			assert.Equal(t, before, count(t, outside), name)
		}
	}
}

// A container can make a tree so deep that its paths are too long, and so are lists of open directories.
func TestRemoveDeep(t *testing.T) {
	sample := fill(newTestRoot(t, t.TempDir(), "vfs"))
	at, err := unix.Open(sample.Path(sample.TreeName(sample.web.Mount)), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for range 2500 {
		require.NoError(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(at))
		at = next
	}
	require.NoError(t, unix.Close(at))
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1000, Max: limit.Max}))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	require.NoError(t, open(t, sample.testRoot).Remove(t.Context()))
	require.NoDirExists(t, sample.Path("vfs"))
}

func count(t *testing.T, dir string) (n int) {
	require.NoError(t, filepath.WalkDir(dir, func(string, os.DirEntry, error) error { n++; return nil }))
	return n
}

// The directory of the driver stays if it is a mount point, as Docker makes it.
func TestRemoveMountPoint(t *testing.T) {
	testfs.Root(t)
	sample := fill(newTestRoot(t, t.TempDir(), "overlay2"))
	home := sample.Path("overlay2")
	mountOn(t, home, home, "", unix.MS_BIND, "")
	require.NoError(t, open(t, sample.testRoot).Remove(t.Context()))
	assert.Equal(t, 1, count(t, home))
	require.NoDirExists(t, sample.Path("image/overlay2"))
}
