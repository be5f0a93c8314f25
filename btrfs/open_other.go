//go:build !linux

package btrfs

import "github.com/cowshed/cowshed/cowcommon"

// openBackend is not called where no filesystem is usable.
func openBackend(string, int, driverOptions, error) (cowcommon.Backend, error) { return nil, nil }
