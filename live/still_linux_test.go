package live_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/live"
)

// TestStill: the content of a layer in use stays for its reader, whatever becomes of the layer.
func TestStill(t *testing.T) { eachHome(t, testStill) }

func testStill(t *testing.T, h home) {
	ctx := t.Context()
	h.create("web")
	h.put("web", "file", "then")
	_, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	var still *live.Still
	h.edit("web", func(dir string) {
		still, err = h.Still(ctx, "web")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("now"), 0o644))
	})
	assert.Equal(t, "web", still.Layer)
	_, err = h.Rollback(ctx, "web", "one", live.RollbackOptions{})
	require.NoError(t, err, "the layer is not held")
	require.NoError(t, h.Sweep(ctx))
	assert.Equal(t, "then", h.get(still.Volume, "file"), "a Sweep leaves it")
	require.NoError(t, still.Close())
	h.assertClean(2, "web")

	still, err = h.Still(ctx, "web@one")
	require.NoError(t, err)
	assert.Equal(t, "one", still.Name)
	assert.Equal(t, "then", h.get(still.Volume, "file"))
	require.NoError(t, still.Close())
	assert.Equal(t, []string{"one", "before-rollback-1"}, h.names("web"))
	h.assertClean(2, "web")

	_, err = h.Still(ctx, "web@none")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	still, err = h.Still(ctx, "web")
	require.NoError(t, err)
	require.NoError(t, h.backend.Remove(ctx, "web"))
	assert.Equal(t, "then", h.get(still.Volume, "file"), "the layer is gone")
	require.NoError(t, still.Close())
	h.assertClean(0)
}

// TestStillCrash: a crash leaves no moment.
func TestStillCrash(t *testing.T) {
	eachCrash(t, onBtrfs(), func(h home) {
		h.create("web")
		h.put("web", "file", "1")
	}, func(h home) error {
		still, err := h.Still(t.Context(), "web")
		if err != nil {
			return err
		}
		return still.Close()
	}, func(h home, _ bool) {
		h.assertClean(0, "web")
	})
}

// TestStillOfPart: the Backend has no moment of a layer with a subvolume in it. The layer stands for itself.
func TestStillOfPart(t *testing.T) {
	h := newHome(t)
	h.create("web")
	h.edit("web", func(dir string) {
		f, err := os.Open(dir)
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, btrfsctl.CreateSubvolume(int(f.Fd()), "nested", nil))
	})
	still, err := h.Still(t.Context(), "web")
	require.NoError(t, err)
	assert.Equal(t, "web", still.Volume)
	require.NoError(t, still.Close())
	h.assertClean(0, "web")
}

// TestStillsAtOnce: each reader has its moment until its end, while others come and go and Sweeps run.
func TestStillsAtOnce(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h := newHome(t)
		h.create("web")
		h.put("web", "file", "1")
		var g errgroup.Group
		for range 8 {
			g.Go(func() error {
				for range 5 {
					still, err := h.Still(t.Context(), "web")
					if err != nil {
						return err
					}
					if err := h.Sweep(t.Context()); err != nil {
						return err
					}
					if _, err := h.backend.Stat(t.Context(), still.Volume); err != nil {
						return err
					}
					if err := still.Close(); err != nil {
						return err
					}
				}
				return nil
			})
		}
		require.NoError(t, g.Wait())
		h.assertClean(0, "web")
	})
}
