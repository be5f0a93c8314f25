// Package e2e tests Cowshed from end to end on real filesystems: every quota mode of btrfs on loopback
// images and, in the ZFS test machine, OpenZFS. It holds tests only.
package e2e
