//go:build !linux

package btrfs

import (
	"context"
	"log/slog"

	"github.com/cowshed/cowshed/cowcommon"
)

// openBackend is never called: only Linux has a usable filesystem.
func openBackend(context.Context, string, int, driverOptions, *slog.Logger, error) (cowcommon.Backend, error) {
	return nil, nil
}

// checkAdoptInto is not called either.
func checkAdoptInto(_, _, _ string) error { return nil }
