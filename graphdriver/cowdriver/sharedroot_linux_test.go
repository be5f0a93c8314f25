package cowdriver_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/bindmount"
	"github.com/cowshed/cowshed/internal/testfs"
)

// inLayer calls do with the root of a layer.
func inLayer(t *testing.T, d *cowdriver.Driver, id string, do func(dir string)) {
	t.Helper()
	dir, err := d.Get(id, "")
	require.NoError(t, err)
	do(dir)
	require.NoError(t, d.Put(id))
}

// styleOf is the root style that the driver says a layer to have.
func styleOf(t *testing.T, d *cowdriver.Driver, id string) string {
	t.Helper()
	metadata, err := d.GetMetadata(id)
	require.NoError(t, err)
	return metadata["Root Style"]
}

// TestSharedRoot is the life of a container with a shared root: it is written to, compared, and becomes an image with
// containers of its own.
func TestSharedRoot(t *testing.T) {
	d := newDriver(t, "btrfs.root_style=shared")
	require.NoError(t, d.Create("image", "", nil))
	inLayer(t, d, "image", func(dir string) {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "etc/conf.d"), 0o755))
		for _, name := range []string{"changed", "gone", "kept", "etc/host", "etc/conf.d/one"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("image"), 0o644))
		}
	})
	require.NoError(t, d.CreateReadWrite("web", "image", nil))
	assert.Equal(t, "shared", styleOf(t, d, "web"))
	assert.Equal(t, "snapshot", styleOf(t, d, "image"))

	want := []archive.Change{
		{Path: "/changed", Kind: archive.ChangeModify}, {Path: "/etc", Kind: archive.ChangeModify},
		{Path: "/etc/conf.d", Kind: archive.ChangeDelete}, {Path: "/etc/new", Kind: archive.ChangeAdd},
		{Path: "/gone", Kind: archive.ChangeDelete},
	}
	changes := func(id string) []archive.Change {
		changes, err := d.Changes(id, "image")
		require.NoError(t, err)
		return changes
	}
	inLayer(t, d, "web", func(dir string) {
		var fs unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &fs))
		assert.EqualValues(t, unix.OVERLAYFS_SUPER_MAGIC, fs.Type)
		names, err := filepath.Glob(filepath.Join(dir, ".*"))
		require.NoError(t, err)
		assert.Empty(t, names, "nothing of Cowshed's is in the container's tree")
		require.NoError(t, os.WriteFile(filepath.Join(dir, "changed"), []byte("container"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "etc/new"), []byte("new"), 0o644))
		require.NoError(t, os.Remove(filepath.Join(dir, "gone")))
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "etc/conf.d")))
		assert.Equal(t, want, changes("web"), "while it runs")
	})
	assert.Equal(t, want, changes("web"))
	assert.Zero(t, d.CompareStats().Walked)
	size, err := d.DiffSize("web", "image")
	require.NoError(t, err)
	assert.EqualValues(t, len("container")+len("new"), size)
	files, err := d.DiffGetter("web")
	require.NoError(t, err)
	file, err := files.Get("changed")
	require.NoError(t, err)
	data, err := io.ReadAll(file)
	require.NoError(t, errors.Join(err, file.Close(), files.Close()))
	assert.Equal(t, "container", string(data))

	diff, err := d.Diff("web", "image")
	require.NoError(t, err)
	layer, err := io.ReadAll(diff)
	require.NoError(t, errors.Join(err, diff.Close()))
	require.NoError(t, d.Create("copy", "image", nil))
	_, err = d.ApplyDiff("copy", "image", bytes.NewReader(layer))
	require.NoError(t, err)
	assert.Equal(t, want, changes("copy"))
	require.NoError(t, d.CreateReadWrite("shared-copy", "image", nil))
	_, err = d.ApplyDiff("shared-copy", "image", bytes.NewReader(layer))
	require.NoError(t, err)
	assert.Equal(t, want, changes("shared-copy"), "a layer can be applied to either style")

	assert.ErrorIs(t, d.Remove("image"), errdefs.ErrFailedPrecondition, "its containers read it")
	require.NoError(t, d.CreateReadWrite("child", "web", nil))
	assert.Equal(t, "shared", styleOf(t, d, "web"), "its changes are copied with it")
	assert.Equal(t, want, changes("web"))
	assert.Equal(t, "shared", styleOf(t, d, "child"))
	_, err = d.ApplyDiff("child", "web", bytes.NewReader(tarOf(t, "applied")))
	require.NoError(t, err)
	inLayer(t, d, "child", func(dir string) {
		assert.FileExists(t, filepath.Join(dir, "applied"))
		assert.FileExists(t, filepath.Join(dir, "etc/new"))
		assert.NoFileExists(t, filepath.Join(dir, "gone"))
	})
	got, err := d.Changes("child", "web")
	require.NoError(t, err)
	assert.Equal(t, []archive.Change{{Path: "/applied", Kind: archive.ChangeAdd}}, got)
	for _, id := range []string{"child", "shared-copy", "copy", "web", "image"} {
		require.NoError(t, d.Remove(id))
	}
	assert.Empty(t, d.CompareStats().Walked)
}

// tarOf makes a layer with one file.
func tarOf(t *testing.T, name string) []byte {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}))
	require.NoError(t, w.Close())
	return layer.Bytes()
}

// TestSharedRootMountedElsewhere: a user of Get may mount the tree elsewhere, and then Put it. The next Get shows the same
// tree, and the layer is in use until the other mount ends.
func TestSharedRootMountedElsewhere(t *testing.T) {
	d := newDriver(t, "btrfs.root_style=shared")
	require.NoError(t, d.Create("image", "", nil))
	require.NoError(t, d.CreateReadWrite("web", "image", nil))
	elsewhere := t.TempDir()
	inLayer(t, d, "web", func(dir string) { require.NoError(t, bindmount.Bind(dir, elsewhere, false)) })
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "file"), nil, 0o644))
	inLayer(t, d, "web", func(dir string) {
		assert.FileExists(t, filepath.Join(dir, "file"))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "back"), nil, 0o644))
	})
	assert.FileExists(t, filepath.Join(elsewhere, "back"))
	require.NoError(t, d.Create("copy", "web", nil))
	assert.ErrorIs(t, d.Remove("web"), errdefs.ErrFailedPrecondition)
	inLayer(t, d, "web", func(dir string) { assert.FileExists(t, filepath.Join(dir, "back")) })
	require.NoError(t, bindmount.Unmount(elsewhere))
	require.NoError(t, d.Remove("web"))
}

// TestSharedRootBesideSnapshots: layers of both styles are clones of one image, and each keeps its own changes. A copy of a
// running container is an ordinary layer unless it names the style.
func TestSharedRootBesideSnapshots(t *testing.T) {
	d := newDriver(t, "btrfs.root_style=shared")
	require.NoError(t, d.Create("image", "", nil))
	write(t, d, "image", "file", 10)
	shared := &graphdriver.CreateOpts{StorageOpt: map[string]string{"root_style": "shared"}}
	require.NoError(t, d.CreateReadWrite("shared", "image", shared))
	own := &graphdriver.CreateOpts{StorageOpt: map[string]string{"root_style": "snapshot"}}
	require.NoError(t, d.CreateReadWrite("own", "image", own))
	write(t, d, "shared", "of-shared", 1)
	write(t, d, "own", "of-own", 1)
	inLayer(t, d, "shared", func(string) {
		require.NoError(t, d.Create("copy", "shared", nil))
		require.NoError(t, d.Create("fork", "shared", shared))
	})
	for id, style := range map[string]string{"shared": "shared", "own": "snapshot", "copy": "snapshot", "fork": "shared"} {
		assert.Equal(t, style, styleOf(t, d, id), id)
		c, err := d.Compare(t.Context(), id, "image", cowcommon.Auto)
		require.NoError(t, err)
		assert.Len(t, c.Changes, 1, id)
		assert.True(t, c.Native, "%s: %s", id, c.Reason)
		require.NoError(t, c.Close())
	}
	entries := []string{}
	inLayer(t, d, "copy", func(dir string) {
		all, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range all {
			entries = append(entries, e.Name())
		}
	})
	slices.Sort(entries)
	assert.Equal(t, []string{"file", "of-shared"}, entries)
}

// A process that reads does not know of shared roots that others turn on later, so nobody turns them on before its end.
func TestSharedRootsWhileRead(t *testing.T) {
	home := filepath.Join(testfs.Btrfs(t), "btrfs")
	open := func(option string) (graphdriver.Driver, error) {
		return btrfs.Init(home, []string{option}, user.IdentityMapping{})
	}
	d, err := open("btrfs.root_style=snapshot")
	require.NoError(t, err)
	require.NoError(t, d.Cleanup())
	reader, err := open("btrfs.read_only=true")
	require.NoError(t, err)
	_, err = open("btrfs.root_style=shared")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.NoError(t, reader.Cleanup())
	d, err = open("btrfs.root_style=shared")
	require.NoError(t, err)
	require.NoError(t, d.Cleanup())
}

// TestSharedRootOfParentInUse: a layer cannot share a parent that is written to. The default gives way to a root of its own, and
// a style that is named does not.
func TestSharedRootOfParentInUse(t *testing.T) {
	d := newDriver(t, "btrfs.root_style=shared")
	require.NoError(t, d.Create("parent", "", nil))
	inLayer(t, d, "parent", func(string) {
		require.NoError(t, d.CreateReadWrite("default", "parent", nil))
		for _, create := range []func(id, parent string, opts *graphdriver.CreateOpts) error{d.Create, d.CreateReadWrite} {
			named := &graphdriver.CreateOpts{StorageOpt: map[string]string{"Root_Style": "shared"}}
			require.ErrorIs(t, create("named", "parent", named), fault.ErrInUse)
			assert.False(t, d.Exists("named"))
		}
	})
	assert.Equal(t, "snapshot", styleOf(t, d, "default"))
}

// viewingBackend lists the volumes that views are asked for.
type viewingBackend struct {
	*btrfs.Backend
	viewed []string
}

func (b *viewingBackend) View(ctx context.Context, name string) (cowcommon.View, error) {
	b.viewed = append(b.viewed, name)
	return b.Backend.View(ctx, name)
}

// TestDiffWithoutSnapshot: a layer with a shared root that nobody uses is compared without a view of it, and with the same
// result. A large diff is read from a view.
func TestDiffWithoutSnapshot(t *testing.T) {
	home := filepath.Join(testfs.Btrfs(t), "btrfs")
	inner, err := btrfs.Open(t.Context(), home, btrfs.Options{})
	require.NoError(t, err)
	viewing := &viewingBackend{Backend: inner}
	backend, err := sharedroot.New(t.Context(), viewing, home, sharedroot.Options{LongestRead: testfs.Patience})
	require.NoError(t, err)
	d := cowdriver.New("btrfs", backend, cowdriver.Options{RootStyle: cowcommon.SharedRoot})
	t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
	require.NoError(t, d.Create("image", "", nil))
	inLayer(t, d, "image", func(dir string) {
		for _, name := range []string{"changed", "gone", "kept"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("image"), 0o644))
		}
	})
	require.NoError(t, d.CreateReadWrite("web", "image", nil))

	all := func() (changes []archive.Change, size int64, tar []byte) {
		changes, err := d.Changes("web", "image")
		require.NoError(t, err)
		size, err = d.DiffSize("web", "image")
		require.NoError(t, err)
		diff, err := d.Diff("web", "image")
		require.NoError(t, err)
		tar, err = io.ReadAll(diff)
		require.NoError(t, errors.Join(err, diff.Close()))
		return changes, size, tar
	}
	inLayer(t, d, "web", func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "changed"), []byte("container"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o644))
		require.NoError(t, os.Remove(filepath.Join(dir, "gone")))
	})
	viewing.viewed = nil
	changes, size, tar := all()
	assert.NotContains(t, viewing.viewed, "web")
	assert.Len(t, changes, 3)
	assert.EqualValues(t, len("container")+len("new"), size)
	inLayer(t, d, "web", func(string) {
		sameChanges, sameSize, sameTar := all()
		assert.Contains(t, viewing.viewed, "web", "somebody uses it")
		assert.Equal(t, changes, sameChanges)
		assert.Equal(t, size, sameSize)
		assert.Equal(t, tar, sameTar)
	})

	write(t, d, "web", "large", 2<<20)
	viewing.viewed = nil
	_, size, tar = all()
	assert.Contains(t, viewing.viewed, "web")
	assert.Greater(t, size, int64(2<<20))
	assert.Greater(t, len(tar), 2<<20)
	assert.Empty(t, d.CompareStats().Walked)
}

// TestDiffWithoutSnapshotEnds: the context of a driver ends reading, of a diff in memory too.
func TestDiffWithoutSnapshotEnds(t *testing.T) {
	d := newDriver(t, "btrfs.root_style=shared")
	require.NoError(t, d.Create("image", "", nil))
	require.NoError(t, d.CreateReadWrite("web", "image", nil))
	write(t, d, "web", "file", 1000)
	ctx, cancel := context.WithCancel(t.Context())
	diff, err := d.WithContext(ctx).Diff("web", "image")
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(diff)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, diff.Close())
}
