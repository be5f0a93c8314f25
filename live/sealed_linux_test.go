package live_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/live"
)

// meanwhile is a Backend of which somebody seals a layer just before the layer is exchanged or renamed.
type meanwhile struct {
	*failing
	layer string
}

func (m meanwhile) Rename(ctx context.Context, name, to string) error {
	if name == m.layer {
		if err := cowcommon.Seal(ctx, m.Backend, name); err != nil {
			return err
		}
	}
	return m.failing.Rename(ctx, name, to)
}

// TestSealedMeanwhile: a layer is sealed, as by a commit of a container, while a rollback of it is under way. It keeps its
// content, wherever the rollback is interrupted.
func TestSealedMeanwhile(t *testing.T) {
	kinds := onBtrfs()
	kinds["native"] = crashing{kinds["native"].home, func(f *failing) cowcommon.Backend {
		seal := func() { _ = cowcommon.Seal(t.Context(), f.Backend, "web") }
		return around{failingNative{f}, seal, func() {}}
	}}
	kinds["by clones"] = crashing{kinds["by clones"].home, func(f *failing) cowcommon.Backend { return meanwhile{f, "web"} }}
	eachCrash(t, kinds,
		func(h home) {
			h.create("web")
			h.put("web", "file", "1")
			_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
			require.NoError(t, err)
			h.put("web", "file", "2")
		},
		func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			if errors.Is(err, errCrash) {
				return err
			}
			require.ErrorIs(h.t, err, fault.ErrSealed)
			return nil
		},
		func(h home, done bool) {
			h.assertClean(1, "web")
			assert.Equal(h.t, "2", h.get("web", "file"))
			assert.Equal(h.t, []string{"one"}, h.names("web"))
			v, err := h.backend.Stat(t.Context(), "web")
			require.NoError(h.t, err)
			assert.True(h.t, v.Sealed || !done)
		})
}
