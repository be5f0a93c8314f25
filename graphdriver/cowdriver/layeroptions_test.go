package cowdriver

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

func TestLayerOptions(t *testing.T) {
	o := Options{
		Quota:     quota.Options{Size: 10 << 30, MinSpace: quota.Minimum{Bytes: 1 << 30, Option: "btrfs.min_space"}, Scope: quota.ScopeTotal},
		RootStyle: cowcommon.SharedRoot,
	}
	for name, c := range map[string]struct {
		opt         map[string]string
		ofContainer bool
		bytes       uint64
		style       cowcommon.RootStyle
	}{
		"image":                   {style: cowcommon.SnapshotRoot},
		"container":               {ofContainer: true, bytes: 10 << 30, style: cowcommon.SharedRoot},
		"size":                    {opt: map[string]string{"size": "2G"}, ofContainer: true, bytes: 2 << 30, style: cowcommon.SharedRoot},
		"style":                   {opt: map[string]string{"root_style": "snapshot"}, ofContainer: true, bytes: 10 << 30, style: cowcommon.SnapshotRoot},
		"image with a size":       {opt: map[string]string{"SIZE": "2G"}, bytes: 2 << 30, style: cowcommon.SnapshotRoot},
		"image asked for by name": {opt: map[string]string{"Root_Style": "shared"}, style: cowcommon.SharedRoot},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := o.volumeOptions(c.opt, c.ofContainer)
			require.NoError(t, err)
			want := cowcommon.VolumeOptions{RootStyle: c.style}
			if c.bytes != 0 {
				want.Limit = quota.Limit{Bytes: c.bytes, Scope: quota.ScopeTotal}
			}
			assert.Equal(t, want, got)
		})
	}
	none, err := Options{}.volumeOptions(nil, true)
	require.NoError(t, err)
	assert.Equal(t, cowcommon.VolumeOptions{RootStyle: cowcommon.SnapshotRoot}, none)

	for name, c := range map[string]struct {
		opt  map[string]string
		want string
	}{
		"unknown":   {map[string]string{"size": "2G", "inodes": "5"}, `unknown layer option "inodes": there are root_style and size`},
		"too small": {map[string]string{"size": "1023m"}, "size 1023MiB is below btrfs.min_space, 1GiB"},
		"no size":   {map[string]string{"size": ""}, `size "": must not be empty`},
		"style":     {map[string]string{"root_style": "overlay"}, `root style "overlay"`},
		"no style":  {map[string]string{"root_style": ""}, `root style ""`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ofContainer := range []bool{false, true} {
				_, err := o.volumeOptions(c.opt, ofContainer)
				require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
				assert.ErrorContains(t, err, c.want)
			}
		})
	}
}
