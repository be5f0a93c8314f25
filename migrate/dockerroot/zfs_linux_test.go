package dockerroot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

func runZFS(t testing.TB, args ...string) string {
	tool, err := admintool.Look("zfs")
	require.NoError(t, err)
	out, err := exec.Command(tool, args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", args, out)
	return string(out)
}

// zfsSample is a sample whose layers are datasets below that of the root, made as Docker makes them.
func zfsSample(t *testing.T) (s *sample, parent string) {
	parent, mountpoint := testfs.ZFS(t)
	r := newTestRoot(t, filepath.Join(mountpoint, "docker"), "zfs")
	r.Mkdir("zfs/graph")
	r.Content = func(id, below string) {
		name := parent + "/" + id
		if below == "" {
			runZFS(t, "create", "-o", "mountpoint=legacy", name)
		} else {
			snapshot := parent + "/" + below + "@" + hexOf(id)[:9] // Docker takes nanoseconds
			runZFS(t, "snapshot", snapshot)
			runZFS(t, "clone", "-o", "mountpoint=legacy", snapshot, name)
			runZFS(t, "destroy", "-d", snapshot)
		}
		unmount := mountOn(t, name, r.Path("zfs/graph"), "zfs", 0, "")
		r.Write("zfs/graph/file", id)
		unmount()
	}
	return fill(r), parent
}

func TestZFS(t *testing.T) {
	sample, parent := zfsSample(t)
	runZFS(t, "set", "quota=1G", parent+"/"+sample.web.Mount)
	want := sample.inventory()
	for i := range want.Layers {
		if want.Layers[i].Limit > 0 {
			want.Layers[i].Limit = 1 << 30
		}
	}
	s := open(t, sample.testRoot)
	require.NoError(t, s.InUse(t.Context()))
	inv, err := s.Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, inv)

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	check := func(id string) {
		c, err := s.Open(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, parent+"/"+id, c.Volume)
		assert.Equal(t, migrate.Whole, c.Form)
		data, err := os.ReadFile("/proc/self/fd/" + fdName(c.Dir) + "/file")
		require.NoError(t, err)
		assert.Equal(t, id, string(data))
		require.ErrorIs(t, os.WriteFile("/proc/self/fd/"+fdName(c.Dir)+"/file", nil, 0o644), unix.EROFS)
		require.NoError(t, c.Close())
	}
	for _, l := range inv.Layers {
		check(l.ID)
	}
	now, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	assert.Equal(t, string(mounts), string(now))

	unmount := mountOn(t, parent+"/"+sample.b.ID, t.TempDir(), "zfs", 0, "")
	require.ErrorIs(t, s.InUse(t.Context()), errdefs.ErrFailedPrecondition)
	check(sample.b.ID)
	unmount()
	require.NoError(t, s.InUse(t.Context()))

	_, err = s.Open(t.Context(), hexOf("none"))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	runZFS(t, "destroy", "-r", parent+"/"+sample.old.Mount)
	inv, err = s.Inventory(t.Context())
	require.NoError(t, err)
	require.Len(t, inv.Problems, 1)
	assert.Equal(t, sample.old.ID, inv.Problems[0].ID)
	require.ErrorIs(t, inv.Problems[0].Err, errdefs.ErrNotFound)
}

// A removal destroys all layers, and nothing that depends on them.
func TestZFSRemove(t *testing.T) {
	sample, parent := zfsSample(t)
	runZFS(t, "create", "-o", "mountpoint=legacy", parent+"/other")
	runZFS(t, "snapshot", parent+"/"+sample.a.ID+"@mine")
	runZFS(t, "clone", "-o", "mountpoint=legacy", parent+"/"+sample.a.ID+"@mine", parent+"/mine")

	s := open(t, sample.testRoot)
	require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrFailedPrecondition)
	list := runZFS(t, "list", "-H", "-o", "name", "-r", parent)
	assert.Contains(t, list, parent+"/mine\n")
	require.DirExists(t, sample.Path("image/zfs"))

	runZFS(t, "promote", parent+"/mine")
	require.NoError(t, s.Remove(t.Context()))
	list = runZFS(t, "list", "-H", "-o", "name", "-r", parent)
	assert.Equal(t, []string{parent, parent + "/mine", parent + "/other"}, strings.Fields(list))
	require.NoDirExists(t, sample.Path("image/zfs"))
	require.NoDirExists(t, sample.Path("zfs"))
	require.DirExists(t, sample.Path("containers"))
}

// A root that is not on ZFS needs the dataset of the layers.
func TestZFSElsewhere(t *testing.T) {
	r := newTestRoot(t, t.TempDir(), "zfs")
	_, err := Open(t.Context(), Options{Dir: r.Dir, Driver: "zfs"})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	for _, name := range []string{"-r", "pool/x@y", "pool/x\ty", "1pool"} {
		_, err = Open(t.Context(), Options{Dir: r.Dir, Driver: "zfs", Dataset: name})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	s, err := Open(t.Context(), Options{Dir: r.Dir, Driver: "zfs", Dataset: "pool/docker layers"})
	require.NoError(t, err)
	require.NoError(t, s.Close())
}
