package btrfs

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
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
	return append(status,
		[2]string{"Quota Mode", orReason(b.quotaMode())},
		[2]string{"Native Diff", b.nativeDiff()})
}

func orReason(value string, err error) string {
	if err != nil {
		return "unknown: " + err.Error()
	}
	return value
}

// device is the source of the mount that holds the home.
func (b *Backend) device() (string, error) {
	// Of mounts on top of each other the last is the one that is seen.
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(b.home))
	if err != nil {
		return "", err
	}
	var device, at string
	for _, m := range mounts {
		if len(m.Mountpoint) >= len(at) {
			device, at = m.Source, m.Mountpoint
		}
	}
	if device == "" {
		return "", errdefs.ErrNotFound
	}
	return device, nil
}

func (b *Backend) quotaMode() (string, error) {
	mode, err := b.quotas.Mode()
	if err != nil {
		return "", err
	}
	if mode == quota.Off {
		return mode.String() + " (policy " + b.quotas.Policy().String() + ")", nil
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

// nativeDiff says whether the kernel can be asked where layers differ, by what came of the last time and,
// before the first, by the privilege that it takes.
func (b *Backend) nativeDiff() string {
	b.noHintsMu.Lock()
	last := b.noHints
	b.noHintsMu.Unlock()
	if last != nil {
		return "not used for the last diff: " + last.Error()
	}
	// The filesystem's UUID is that of no subvolume, but looking for it takes the same privilege.
	if _, err := btrfsctl.IDByUUID(int(b.fs.Fd()), b.fsUUID); err != nil && !errors.Is(err, unix.ENOENT) {
		return "not available: " + err.Error()
	}
	return "available"
}
