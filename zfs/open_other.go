//go:build !linux

package zfs

import (
	"context"
	"log/slog"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
)

// openBackend is not called: no filesystem is usable off Linux.
func openBackend(context.Context, string, string, int, *slog.Logger, error) (cowcommon.Backend, error) {
	return nil, nil
}

// checkAdoptInto is not called either.
func checkAdoptInto(context.Context, string, string, string, string) error { return nil }

// freeInto is not called either.
func freeInto(context.Context, string, string) (uint64, error) { return 0, nil }

// Names works on Linux only.
func Names(ctx context.Context, _ string, _ []string) ([]string, error) {
	return nil, detect.ZFS(ctx, "")
}
