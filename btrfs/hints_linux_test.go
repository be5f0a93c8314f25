package btrfs

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestRelated: volumes are related by their ancestors. If one of these has been destroyed, the root directories tell.
func TestRelated(t *testing.T) {
	b := open(t, testfs.Btrfs(t), Options{})
	related := func(base, top string) bool {
		t.Helper()
		one, err := b.openVolume(base)
		require.NoError(t, err)
		defer one.Close()
		other, err := b.openVolume(top)
		require.NoError(t, err)
		defer other.Close()
		is, err := b.related(one, other)
		require.NoError(t, err)
		return is
	}
	const one, twin = "one", "twin"
	for _, name := range []string{one, twin} {
		require.NoError(t, b.Create(t.Context(), name, cowcommon.VolumeOptions{}))
	}
	for _, step := range [][2]string{{"child", one}, {"grandchild", "child"}, {"nephew", one}} {
		require.NoError(t, b.Clone(t.Context(), step[0], step[1], cowcommon.VolumeOptions{}))
	}
	assertRelated := func(want bool, base, top string) {
		t.Helper()
		for _, pair := range [][2]string{{base, top}, {top, base}} {
			assert.Equal(t, want, related(pair[0], pair[1]), "%v", pair)
		}
	}
	assertRelated(true, one, "grandchild")
	assertRelated(true, "nephew", "grandchild")
	assertRelated(false, twin, "grandchild")
	require.NoError(t, b.Remove(t.Context(), "child"))
	assertRelated(true, one, "grandchild")
	assertRelated(true, "nephew", "grandchild")
}
