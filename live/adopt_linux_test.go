package live_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// TestAdopt makes layers of a directory and of a subvolume. Both stay as they are.
func TestAdopt(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	mnt := filepath.Dir(h.records)
	plain, subvolume := filepath.Join(mnt, "plain"), filepath.Join(mnt, "subvolume")
	require.NoError(t, os.Mkdir(plain, 0o750))
	require.NoError(t, exec.Command("btrfs", "subvolume", "create", subvolume).Run())
	for name, dir := range map[string]string{"by-copy": plain, "by-snapshot": subvolume} {
		forest.New(t, 1, dir).Change(100)
		snapshot, err := h.Adopt(ctx, name, dir, cowcommon.VolumeOptions{})
		require.NoError(t, err)
		assert.Equal(t, name == "by-snapshot", snapshot)
		h.edit(name, func(tree string) { treecmp.Equal(t, dir, tree, treecmp.Options{Roots: true}) })
		h.put(name, "own", "own")
		assert.NoFileExists(t, filepath.Join(dir, "own"))
		_, err = h.Adopt(ctx, name, dir, cowcommon.VolumeOptions{})
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	}
	_, err := h.Adopt(ctx, "none", filepath.Join(mnt, "none"), cowcommon.VolumeOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = h.Adopt(ctx, "../x", plain, cowcommon.VolumeOptions{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	h.assertClean(0, "by-copy", "by-snapshot")
}

// TestAdoptCrash: there is a whole layer, or nothing.
func TestAdoptCrash(t *testing.T) {
	dir := func(h home) string { return filepath.Join(filepath.Dir(h.records), "plain") }
	eachCrash(t, onBtrfs(),
		func(h home) {
			require.NoError(t, os.Mkdir(dir(h), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir(h), "file"), []byte("1"), 0o644))
		},
		func(h home) error {
			_, err := h.Adopt(t.Context(), "web", dir(h), cowcommon.VolumeOptions{})
			return err
		},
		func(h home, done bool) {
			if !done {
				h.assertClean(0)
				return
			}
			h.assertClean(0, "web")
			assert.Equal(t, "1", h.get("web", "file"))
		})
}
