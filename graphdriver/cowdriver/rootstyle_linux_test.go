package cowdriver_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// TestRootStyleReachesTheBackend: containers' layers have the driver's default, and any layer the style that it names.
func TestRootStyleReachesTheBackend(t *testing.T) {
	styled := func(style string) *graphdriver.CreateOpts {
		return &graphdriver.CreateOpts{StorageOpt: map[string]string{"root_style": style}}
	}
	d, o, _ := observeWith(t, cowdriver.Options{RootStyle: cowcommon.SharedRoot})
	for name, c := range map[string]struct {
		create func(id, parent string, opts *graphdriver.CreateOpts) error
		opts   *graphdriver.CreateOpts
		want   cowcommon.RootStyle
	}{
		"image":            {d.Create, nil, cowcommon.SnapshotRoot},
		"image-shared":     {d.Create, styled("shared"), cowcommon.SharedRoot},
		"container":        {d.CreateReadWrite, nil, cowcommon.SharedRoot},
		"container-copied": {d.CreateReadWrite, styled("snapshot"), cowcommon.SnapshotRoot},
	} {
		require.NoError(t, c.create(name, "base", c.opts), name)
		assert.Equal(t, c.want, o.made[name].RootStyle, name)
		require.NoError(t, d.Remove(name))
	}
	assert.Contains(t, d.Status(), [2]string{"Root Style", "shared"})

	for _, create := range []func(id, parent string, opts *graphdriver.CreateOpts) error{d.Create, d.CreateReadWrite} {
		for _, parent := range []string{"", "base"} {
			require.ErrorIs(t, create("bad", parent, styled("overlay")), errdefs.ErrInvalidArgument)
			assert.NotContains(t, o.made, "bad", "the Backend was called")
			assert.False(t, d.Exists("bad"))
		}
	}
}

func TestRootStyleOfNoDefault(t *testing.T) {
	d, o, _ := observe(t)
	require.NoError(t, d.CreateReadWrite("container", "base", nil))
	assert.Equal(t, cowcommon.SnapshotRoot, o.made["container"].RootStyle)
	assert.Contains(t, d.Status(), [2]string{"Root Style", "snapshot"})
}
