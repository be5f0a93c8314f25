package zfs

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/quota"
)

func TestParseOptions(t *testing.T) {
	got, err := parseOptions([]string{"zfs.fsname=tank/a=b", "zfs.size=1g", "zfs.quota_scope=total"})
	require.NoError(t, err)
	assert.Equal(t, driverOptions{quota.Options{Size: units.GiB, Scope: quota.ScopeTotal}, "tank/a=b"}, got)

	for opt, want := range map[string]string{
		"zfs.quota=auto":   "driver zfs has zfs.fsname, zfs.quota_scope, zfs.read_only, zfs.size",
		"zfs.fsname=/tank": `dataset "/tank"`,
		"zfs.fsname=":      `dataset ""`,
	} {
		_, err := parseOptions([]string{opt})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		assert.ErrorContains(t, err, want)
	}
}
