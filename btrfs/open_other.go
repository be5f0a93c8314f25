//go:build !linux

package btrfs

import (
	"context"
	"log/slog"

	"github.com/cowshed/cowshed/cowcommon"
)

// openBackend is not called where no filesystem is usable.
func openBackend(context.Context, string, int, driverOptions, *slog.Logger, error) (cowcommon.Backend, error) {
	return nil, nil
}
