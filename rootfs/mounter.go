package rootfs

import (
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
)

// Mounter mounts snapshots.
type Mounter interface {
	// Mount mounts all mounts, one after the other, on the directory target.
	Mount(target string, mounts ...mount.Mount) error
	// Unmount undoes Mount, also after a Mount that has failed half-way.
	Unmount(target string) error
}

// HostMounter is the Mounter of this host and this process's mount namespace, for which it needs the right to mount.
type HostMounter struct{}

// Mount implements Mounter. After an error nothing is mounted.
func (m HostMounter) Mount(target string, mounts ...mount.Mount) error {
	if err := mount.All(mounts, target); err != nil {
		return errors.Join(fmt.Errorf("rootfs: mount on %s: %w", target, err), m.Unmount(target))
	}
	return nil
}

// Unmount implements Mounter. It unmounts whatever is mounted on or below target; there need not be anything.
func (HostMounter) Unmount(target string) error {
	if err := mount.UnmountRecursive(target, 0); err != nil {
		return fmt.Errorf("rootfs: unmount %s: %w", target, err)
	}
	return nil
}
