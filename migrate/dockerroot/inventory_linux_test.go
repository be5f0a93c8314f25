package dockerroot

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

var silent = slog.New(slog.DiscardHandler)

// treeDrivers are the drivers whose roots any filesystem can hold.
var treeDrivers = []string{"btrfs", "overlay2", "fuse-overlayfs", "vfs", "aufs"}

func open(t testing.TB, r *testRoot) *Source {
	s, err := Open(t.Context(), Options{Dir: r.Dir, Driver: r.Driver, Logger: silent})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

func TestInventory(t *testing.T) {
	for _, driver := range treeDrivers {
		t.Run(driver, func(t *testing.T) {
			sample := fill(newTestRoot(t, t.TempDir(), driver))
			s := open(t, sample.testRoot)
			inv, err := s.Inventory(t.Context())
			require.NoError(t, err)
			require.Equal(t, sample.inventory(), inv)
			checkContents(t, s, inv)

			drivers, err := Detect(sample.Dir)
			require.NoError(t, err)
			assert.Equal(t, []string{driver}, drivers)
		})
	}
}

// checkContents opens all layers of the inventory. Each has a file with the layer's ID.
func checkContents(t *testing.T, s *Source, inv *migrate.Inventory) {
	forms := map[string]migrate.Form{"overlay2": migrate.Overlay, "fuse-overlayfs": migrate.FuseOverlay, "aufs": migrate.Aufs}
	for _, l := range inv.Layers {
		c, err := s.Open(t.Context(), l.ID)
		require.NoError(t, err)
		data, err := os.ReadFile(filepath.Join("/proc/self/fd", fdName(c.Dir), "file"))
		require.NoError(t, err)
		assert.Equal(t, l.ID, string(data))
		want := forms[s.driver]
		if want == "" {
			want = migrate.Whole
		}
		assert.Equal(t, want, c.Form)
		assert.Empty(t, c.Volume)
		require.NoError(t, c.Close())

		parts, err := s.Parts(t.Context(), l.ID)
		if l.Kind != migrate.ImageLayer {
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			continue
		}
		require.NoError(t, err)
		data, err = io.ReadAll(parts)
		require.NoError(t, err)
		assert.Contains(t, []string{partsOf("a"), partsOf("b"), partsOf("c")}, string(data))
		require.NoError(t, parts.Close())
	}
}

// Layers open before an Inventory, and after a target has changed the configurations of containers.
func TestOpenWithoutInventory(t *testing.T) {
	sample := fill(newTestRoot(t, t.TempDir(), "vfs"))
	sample.remove("containers")
	s := open(t, sample.testRoot)
	c, err := s.Open(t.Context(), sample.web.Init)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	parts, err := s.Parts(t.Context(), sample.b.ID)
	require.NoError(t, err)
	require.NoError(t, parts.Close())

	for _, id := range []string{"", "..", "../../containers", "x", hexOf("none"), sample.a.ID + "/..", hexOf("a") + "-init-init"} {
		_, err := s.Open(t.Context(), id)
		require.Error(t, err, id)
		assert.True(t, errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err), "%s: %v", id, err)
		_, err = s.Parts(t.Context(), id)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
}

func TestDetect(t *testing.T) {
	dir := t.TempDir()
	drivers, err := Detect(dir)
	require.NoError(t, err)
	assert.Empty(t, drivers)
	_, err = Open(t.Context(), Options{Dir: dir})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = Detect(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	// Docker makes the directories of a driver before there is a layer.
	newTestRoot(t, dir, "overlay2")
	drivers, err = Detect(dir)
	require.NoError(t, err)
	assert.Empty(t, drivers)

	fill(newTestRoot(t, dir, "vfs"))
	s, err := Open(t.Context(), Options{Dir: dir})
	require.NoError(t, err)
	assert.Equal(t, "vfs", s.driver)
	require.NoError(t, s.Close())

	newTestRoot(t, dir, "devicemapper").layer("a", nil)
	drivers, err = Detect(dir)
	require.NoError(t, err)
	assert.Equal(t, []string{"devicemapper", "vfs"}, drivers)
	for driver, want := range map[string]error{
		"": errdefs.ErrInvalidArgument, "devicemapper": errdefs.ErrNotImplemented, "btrfs": errdefs.ErrNotFound,
		"../image/vfs": errdefs.ErrInvalidArgument, "..": errdefs.ErrInvalidArgument,
	} {
		_, err := Open(t.Context(), Options{Dir: dir, Driver: driver})
		require.ErrorIs(t, err, want, driver)
	}
}

// TestMappedOwners: the superuser cannot move a root whose files have mapped ids. Docker gives the directory of containers to the
// user and the group that are root in its containers, and since 20.10 to the group alone.
func TestMappedOwners(t *testing.T) {
	testfs.Root(t) // only the superuser is refused
	r := newTestRoot(t, t.TempDir(), "vfs")
	r.layer("base", nil)
	for _, uid := range []int{100000, 0} {
		require.NoError(t, os.Chown(r.Path("containers"), uid, 100000))
		_, err := Open(t.Context(), Options{Dir: r.Dir})
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		assert.ErrorContains(t, err, "userns-remap")
	}
	require.NoError(t, os.Chown(r.Path("containers"), 0, 0))
	require.NoError(t, os.Chown(r.Path("."), 0, 999)) // an administrator may have given it to a group
	source, err := Open(t.Context(), Options{Dir: r.Dir})
	require.NoError(t, err)
	require.NoError(t, source.Close())
}

// A root has containers of each driver that it was used with.
func TestTwoDrivers(t *testing.T) {
	dir := t.TempDir()
	vfs := fill(newTestRoot(t, dir, "vfs"))
	overlay := newTestRoot(t, dir, "overlay2")
	other := overlay.container("other", "", overlay.layer("other", nil), true, nil, nil)

	inv, err := open(t, vfs.testRoot).Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, vfs.inventory(), inv)
	inv, err = open(t, overlay).Inventory(t.Context())
	require.NoError(t, err)
	assert.Empty(t, inv.Problems)
	require.Len(t, inv.Containers, 1)
	assert.Equal(t, other.ID, inv.Containers[0].ID)
}

// The oldest containers have no driver in their configuration, and mean aufs.
func TestContainerWithoutDriver(t *testing.T) {
	for driver, want := range map[string]int{"aufs": 1, "vfs": 0} {
		r := newTestRoot(t, t.TempDir(), driver)
		r.container("old", "", r.layer("a", nil), true, map[string]any{"Driver": ""}, nil)
		inv, err := open(t, r).Inventory(t.Context())
		require.NoError(t, err)
		assert.Empty(t, inv.Problems)
		assert.Len(t, inv.Containers, want, driver)
	}
}

func TestLimits(t *testing.T) {
	const option, record = "1g", "2147483648"
	size := map[string]any{"StorageOpt": map[string]string{"Size": option}}
	for name, c := range map[string]struct {
		driver, record string
		host           any
		want           int64
	}{
		"option":              {"overlay2", "", size, 1 << 30},
		"no option":           {"overlay2", "", map[string]any{"StorageOpt": nil}, 0},
		"record":              {"btrfs", record, nil, 2 << 30},
		"record and option":   {"btrfs", record, size, 2 << 30},
		"damaged record":      {"btrfs", "x", size, 1 << 30},
		"unintelligible size": {"vfs", "", map[string]any{"StorageOpt": map[string]string{"size": "none"}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestRoot(t, t.TempDir(), c.driver)
			container := r.container("web", "", r.layer("a", nil), false, nil, c.host)
			if c.record != "" {
				r.Write("btrfs/quotas/"+container.Mount, c.record)
			}
			inv, err := open(t, r).Inventory(t.Context())
			require.NoError(t, err)
			require.Empty(t, inv.Problems)
			assert.Equal(t, container.Mount, inv.Layers[1].ID)
			assert.Equal(t, c.want, inv.Layers[1].Limit)
		})
	}
}

func TestInventoryCanceled(t *testing.T) {
	sample := fill(newTestRoot(t, t.TempDir(), "vfs"))
	s := open(t, sample.testRoot)
	complete := false
	for n := 0; !complete; n++ {
		inv, err := s.Inventory(&countdown{Context: t.Context(), left: n})
		if complete = err == nil; complete {
			assert.Greater(t, n, 10)
			assert.Equal(t, sample.inventory(), inv)
			continue
		}
		require.ErrorIs(t, err, context.Canceled)
	}
}

// countdown is a context that ends when it has been asked so often.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestParents: images know from which others they were made, unless there is no end to that.
func TestParents(t *testing.T) {
	r := newTestRoot(t, t.TempDir(), "vfs")
	layer := r.layer("layer", nil)
	parent := func(image, parent digest.Digest) {
		r.Write("image/vfs/imagedb/metadata/sha256/"+image.Encoded()+"/parent", string(parent))
	}
	var ids []digest.Digest
	for _, name := range []string{"base", "middle", "top", "round", "and round", "into it", "self", "of none", "odd"} {
		ids = append(ids, r.AddImage(layer, name))
	}
	parent(ids[1], ids[0])
	parent(ids[2], ids[1])
	parent(ids[3], ids[4])
	parent(ids[4], ids[3])
	parent(ids[5], ids[4])
	parent(ids[6], ids[6])
	parent(ids[7], digest.FromString("none"))
	parent(ids[8], "../odd")

	s, err := Open(t.Context(), Options{Dir: r.Dir})
	require.NoError(t, err)
	defer s.Close()
	inv, err := s.Inventory(t.Context())
	require.NoError(t, err)
	require.Empty(t, inv.Problems)
	found := make(map[digest.Digest]digest.Digest)
	for _, image := range inv.Images {
		if image.Parent != "" {
			found[image.ID] = image.Parent
		}
	}
	assert.Equal(t, map[digest.Digest]digest.Digest{ids[1]: ids[0], ids[2]: ids[1]}, found)
}
