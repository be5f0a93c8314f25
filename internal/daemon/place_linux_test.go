package daemon

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cowshed/cowshed/plugin"
)

// TestPlaceOptions: the option that says where containerd's volumes are is not for the volumes of others.
func TestPlaceOptions(t *testing.T) {
	const place, other = "zfs.fsname=tank/cowshed", "zfs.quota_scope=total"
	c := Default()
	c.StorageOptions = []string{place, other}

	assert.Contains(t, c.driverOptions("zfs"), place)
	assert.Equal(t, []string{other}, c.storeOptions("zfs"))
	assert.Equal(t, []string{place}, c.placeOptions("zfs"))
	assert.Empty(t, c.storeOptions("btrfs"))
	assert.Empty(t, c.placeOptions("btrfs"))

	own := c.pluginOptions(plugin.InitRequest{Options: []string{"zfs.fsname=tank/docker"}})("zfs")
	assert.NotContains(t, own, place)
	assert.Contains(t, own, other)
	assert.Equal(t, "zfs.fsname=tank/docker", own[len(own)-1])

	for option, is := range map[string]bool{
		place: true, " ZFS.fsname = x": true, other: false, "btrfs.fsname=x": false, "fsname=x": false, "another.fsname=x": false,
	} {
		assert.Equal(t, is, isPlace(option), option)
	}
}
