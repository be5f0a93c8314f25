//go:build !linux

package zfs

import (
	"context"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
)

// openBackend is not called where no filesystem is usable.
func openBackend(string, string, int, error) (cowcommon.Backend, error) { return nil, nil }

// Names works on Linux only.
func Names(context.Context, string, []string) ([]string, error) { return nil, detect.ZFS("") }
