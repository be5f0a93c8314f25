package btrfs

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

// Status describes the filesystem, its space and its quota mode at this moment.
func (b *Backend) Status(context.Context) [][2]string {
	status := [][2]string{
		{"Backing Filesystem", "btrfs"},
		{"Filesystem UUID", b.fsUUID.String()},
		{"Device", cowcommon.OrUnknown(b.device())},
	}
	var space unix.Statfs_t
	if err := unix.Fstatfs(int(b.fs.Fd()), &space); err != nil {
		status = append(status, [2]string{"Space", cowcommon.OrUnknown("", err)})
	} else {
		block := uint64(space.Bsize)
		status = append(status,
			[2]string{"Space Total", quota.FormatSize(space.Blocks * block)},
			[2]string{"Space Used", quota.FormatSize((space.Blocks - space.Bfree) * block)},
			[2]string{"Space Available", quota.FormatSize(space.Bavail * block)})
	}
	return append(status, [2]string{"Quota Mode", b.examineQuota().Detail})
}

// device returns the source of the mount that holds the home.
func (b *Backend) device() (string, error) {
	m, err := mountOf(b.home)
	if err != nil {
		return "", err
	}
	return m.Source, nil
}
