//go:build !linux

package sharedroot

import (
	"context"
	"log/slog"

	"github.com/cowshed/cowshed/cowcommon"
)

// New returns inner: only Linux has overlays.
func New(_ context.Context, inner cowcommon.Backend, _ string, _ Options) (cowcommon.Backend, error) {
	return inner, nil
}

// StayOffReading does nothing.
func StayOffReading(ctx context.Context, home string) (end func() error, isOn bool, err error) {
	return StayOff(ctx, home)
}

// Sweep does nothing.
func Sweep(string, *slog.Logger) {}

// StayOff does nothing.
func StayOff(context.Context, string) (end func() error, isOn bool, err error) {
	return func() error { return nil }, false, nil
}
