// Package daemons has the end-to-end tests with real daemons: containerd, Docker Engine of today and Debian's with
// graph driver plugins, and a registry, on a loopback btrfs. Those with ZFS in their name keep all data on a ZFS
// dataset; scripts/test-zfs.sh takes them into the ZFS test machine. It is a module of its own, because the daemons'
// sources are among its requirements; scripts/daemons.sh builds them. The package harness runs them.
package daemons
