//go:build !linux

package daemon

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/snapshotter"
)

// WithSnapshotter says that this platform has none.
func WithSnapshotter(context.Context, Config, *slog.Logger, func(*snapshotter.Snapshotter) error) error {
	return fmt.Errorf("the daemon: %w", graphdriver.ErrNotSupported)
}

// Repair says that this platform has no daemon.
func Repair(context.Context, Config, *slog.Logger) (*snapshotter.Repaired, error) {
	return nil, fmt.Errorf("the daemon: %w", graphdriver.ErrNotSupported)
}

// VolumeOf says that this platform has no daemon.
func VolumeOf(context.Context, Config, *slog.Logger, string, string) (string, error) {
	return "", fmt.Errorf("the daemon: %w", graphdriver.ErrNotSupported)
}

// AskVolumeOf says that this platform has no daemon.
func AskVolumeOf(context.Context, Config, string, string) (string, error) {
	return "", fmt.Errorf("the daemon: %w", graphdriver.ErrNotSupported)
}

// ProcessOf finds no process: containers are on Linux alone.
func ProcessOf(Config) func(ctx context.Context, volume string) (pid uint32, err error) { return nil }

// ContainersOf has no containers: they are on Linux alone.
func ContainersOf(Config) live.Containers { return live.Containers{} }

// OpenHome says that this platform has no daemon.
func OpenHome(context.Context, Config, *slog.Logger) (string, *cowdriver.Driver, error) {
	return "", nil, fmt.Errorf("the daemon: %w", graphdriver.ErrNotSupported)
}
