//go:build cgo

package main

import (
	"path/filepath"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/cowshed/cowshed/cowcommon"
	_ "github.com/moby/moby/v2/daemon/graphdriver/btrfs"    // registers the driver
	_ "github.com/moby/moby/v2/daemon/graphdriver/overlay2" // registers the driver
	_ "go.podman.io/storage/drivers/overlay"                // registers the driver
	podmanreexec "go.podman.io/storage/pkg/reexec"
)

// btrfsPeers are those beside Cowshed on btrfs, which need cgo.
func (c config) btrfsPeers() []opener {
	return []opener{
		{"moby", func(root string) (contender, error) { return newMoby(c.filesystem, root) }},
		{"podman", func(root string) (contender, error) { return newPodman(c.filesystem, root) }},
		{"containerd", func(root string) (contender, error) { return newContainerdBtrfs(root, c.work) }},
		{"floor", newFloor},
	}
}

// snapshotters are those for containerd.
func (c config) snapshotters() []opener {
	return []opener{
		{"cowshed", func(root string) (contender, error) {
			return newCowshedSnapshotter(root, c.work, cowcommon.SnapshotRoot)
		}},
		{"containerd", func(root string) (contender, error) { return newContainerdBtrfs(root, c.work) }},
	}
}

// overlays are Cowshed in both root styles, and drivers that use overlayfs.
func (c config) overlays() []opener {
	all := []opener{
		{"cowshed", func(root string) (contender, error) { return newCowshed(c.filesystem, root) }},
		{"cowshed-shared", func(root string) (contender, error) {
			return newCowshed(c.filesystem, root, c.filesystem+".root_style=shared")
		}},
		{"cowshed-snapshotter", func(root string) (contender, error) {
			return newCowshedSnapshotter(root, c.work, cowcommon.SharedRoot)
		}},
		{"overlay2", func(root string) (contender, error) { return newMoby("overlay2", root) }},
		{"podman-overlay", func(root string) (contender, error) { return newPodman("overlay", root) }},
		{"containerd-overlayfs", func(root string) (contender, error) {
			snapshotter, err := overlay.NewSnapshotter(filepath.Join(root, "overlayfs"))
			return newContainerd(snapshotter, err, c.work)
		}},
	}
	if c.ext4 != "" {
		all = append(all, opener{onExt4, func(root string) (contender, error) { return newMoby("overlay2", root) }})
	}
	return all
}

// peerCommand does the task for which podman's driver has started this program again, and reports whether there was
// one.
func peerCommand() bool { return podmanreexec.Init() }
