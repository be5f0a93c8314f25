package cowcommon

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/quota"
)

func TestDriverOptions(t *testing.T) {
	var o DriverOptions
	require.NoError(t, o.Setters().Parse("cow", []string{"cow.root_style=shared", "cow.read_only=true"}))
	assert.Equal(t, DriverOptions{Options: quota.Options{ReadOnly: true}, RootStyle: SharedRoot}, o)
	require.NoError(t, o.Setters().Parse("cow", []string{"cow.root_style=snapshot"}))
	assert.Equal(t, SnapshotRoot, o.RootStyle)
	for _, value := range []string{"", "overlay", "Shared"} {
		err := o.Setters().Parse("cow", []string{"cow.root_style=" + value})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, value)
		assert.ErrorContains(t, err, `use "snapshot" or "shared"`)
	}
}
