package live_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// changed lists the changes of a layer or snapshot since another.
func (h home) changed(ref, since string) string {
	h.t.Helper()
	d, err := h.Diff(h.t.Context(), ref, since)
	require.NoError(h.t, err)
	var changes []string
	for _, change := range d.Changes {
		changes = append(changes, change.String())
	}
	require.NoError(h.t, d.Close())
	return strings.Join(changes, " ")
}

// TestStyleChanged: a layer changes its root style between its snapshots. Each operation goes on between the two styles, and a
// rollback brings the style of the snapshot back.
func TestStyleChanged(t *testing.T) {
	h, ctx := openHome(t, cowcommon.SharedRoot), t.Context()
	h.forked()
	shared, err := h.Snapshot(ctx, "web", "shared", live.SnapshotOptions{})
	require.NoError(t, err)
	require.NoError(t, cowcommon.SetRootStyle(ctx, h.backend, "web", cowcommon.SnapshotRoot))
	h.put("web", "file", "2")
	own, err := h.Snapshot(ctx, "web", "own", live.SnapshotOptions{})
	require.NoError(t, err)
	hasStyles := func(web cowcommon.RootStyle) {
		t.Helper()
		for volume, want := range map[string]cowcommon.RootStyle{
			"web": web, "fork": cowcommon.SharedRoot, shared.Volume: cowcommon.SharedRoot, own.Volume: cowcommon.SnapshotRoot,
		} {
			v, err := h.backend.Stat(ctx, volume)
			require.NoError(t, err)
			assert.Equal(t, want, v.RootStyle, volume)
		}
	}
	hasStyles(cowcommon.SnapshotRoot)
	assert.Equal(t, "C /file", h.changed("web@own", "web@shared"))
	assert.Equal(t, "C /file", h.changed("web@shared", "web"))

	h.put("fork", "new", "3")
	merged, err := h.Merge(ctx, "fork", live.MergeOptions{})
	require.NoError(t, err)
	require.Len(t, merged.Changes, 1)
	assert.Equal(t, "/new", merged.Changes[0].Path)
	hasStyles(cowcommon.SnapshotRoot)
	assert.Equal(t, "2", h.get("web", "file"))

	for _, c := range []struct {
		snapshot, content string
		style             cowcommon.RootStyle
	}{{"shared", "1\n", cowcommon.SharedRoot}, {"own", "2", cowcommon.SnapshotRoot}, {"shared", "1\n", cowcommon.SharedRoot}} {
		_, err = h.Rollback(ctx, "web", c.snapshot, live.RollbackOptions{})
		require.NoError(t, err)
		hasStyles(c.style)
		assert.Equal(t, c.content, h.get("web", "file"))
		assert.Empty(t, h.get("web", "new"))
	}
	_, err = h.Rollback(ctx, "web", "own", live.RollbackOptions{Live: true})
	require.NoError(t, err)
	hasStyles(cowcommon.SharedRoot)
	assert.Equal(t, "2", h.get("web", "file"))

	for _, layer := range []string{"web", "fork", "distro"} {
		require.NoError(t, h.Sweep(ctx))
		require.NoError(t, h.backend.Remove(ctx, layer))
	}
	h.assertClean(0)
}
