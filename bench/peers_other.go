//go:build !cgo

package main

// btrfsPeers are none without cgo: such a program is for the ZFS test machine.
func (config) btrfsPeers() []opener { return []opener{{"floor", newFloor}} }

func (config) snapshotters() []opener { return nil }

func (config) overlays() []opener { return nil }

func peerCommand() bool { return false }
