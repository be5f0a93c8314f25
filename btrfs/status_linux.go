package btrfs

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/quota"
)

// Status describes the filesystem and what of it can be used, as it is now.
func (b *Backend) Status(context.Context) [][2]string {
	status := [][2]string{
		{"Backing Filesystem", "btrfs"},
		{"Filesystem UUID", b.fsUUID.String()},
		{"Device", orReason(b.device())},
	}
	var space unix.Statfs_t
	if err := unix.Fstatfs(int(b.fs.Fd()), &space); err != nil {
		status = append(status, [2]string{"Space", orReason("", err)})
	} else {
		block := uint64(space.Bsize)
		status = append(status,
			[2]string{"Space Total", quota.FormatSize(space.Blocks * block)},
			[2]string{"Space Used", quota.FormatSize((space.Blocks - space.Bfree) * block)},
			[2]string{"Space Available", quota.FormatSize(space.Bavail * block)})
	}
	return append(status, [2]string{"Quota Mode", orReason(b.quotaMode())})
}

func orReason(value string, err error) string {
	if err != nil {
		return "unknown: " + err.Error()
	}
	return value
}

// device is the source of the mount that holds the home.
func (b *Backend) device() (string, error) {
	m, err := mountOf(b.home)
	if err != nil {
		return "", err
	}
	return m.Source, nil
}

func (b *Backend) quotaMode() (string, error) {
	mode, err := b.quotas.Mode()
	if err != nil {
		return "", err
	}
	if mode == quota.Off {
		lost, err := b.quotas.Lost()
		if lost {
			return mode.String() + ", limits are lost: somebody has turned quotas off", err
		}
		return mode.String() + " (policy " + b.quotas.Policy().String() + ")", err
	}
	consistent, err := b.quotas.Consistent()
	if err != nil {
		return "", err
	}
	if !consistent {
		return mode.String() + ", inconsistent: limits are not enforced until a rescan", nil
	}
	return mode.String() + ", consistent", nil
}
