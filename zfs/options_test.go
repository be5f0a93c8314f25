package zfs

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

func TestParseOptions(t *testing.T) {
	got, err := parseOptions([]string{"zfs.fsname=tank/a=b", "zfs.size=1g", "zfs.quota_scope=total", "zfs.root_style=shared"})
	require.NoError(t, err)
	assert.Equal(t, driverOptions{cowcommon.DriverOptions{
		Options: quota.Options{Size: units.GiB, Scope: quota.ScopeTotal}, RootStyle: cowcommon.SharedRoot,
	}, "tank/a=b"}, got)

	for opt, want := range map[string]string{
		"zfs.quota=auto":   "driver zfs has zfs.fsname, zfs.quota_scope, zfs.read_only, zfs.root_style, zfs.size",
		"zfs.root_style=x": `root style "x"`,
		"zfs.fsname=/tank": `dataset "/tank"`,
		"zfs.fsname=":      `dataset ""`,
	} {
		_, err := parseOptions([]string{opt})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		assert.ErrorContains(t, err, want)
	}
}
