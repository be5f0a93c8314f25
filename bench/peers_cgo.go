//go:build cgo

package main

import (
	_ "github.com/moby/moby/v2/daemon/graphdriver/btrfs" // registers the driver
	podmanreexec "go.podman.io/storage/pkg/reexec"
)

// btrfsPeers are those beside Cowshed on btrfs, which need cgo.
func (c config) btrfsPeers() []opener {
	return []opener{
		{"moby", func(root string) (contender, error) { return newMoby(c.filesystem, root) }},
		{"podman", func(root string) (contender, error) { return newPodman(c.filesystem, root) }},
		{"containerd", func(root string) (contender, error) { return newContainerd(root, c.work) }},
		{"floor", newFloor},
	}
}

// snapshotters are those for containerd.
func (c config) snapshotters() []opener {
	return []opener{
		{"cowshed", func(root string) (contender, error) { return newCowshedSnapshotter(root, c.work) }},
		{"containerd", func(root string) (contender, error) { return newContainerd(root, c.work) }},
	}
}

// peerCommand does the task for which podman's driver has started this program again, and reports whether there was
// one.
func peerCommand() bool { return podmanreexec.Init() }
