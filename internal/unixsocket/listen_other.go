//go:build !linux

package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Listen returns errors.ErrUnsupported.
func Listen(_ context.Context, path string) (net.Listener, error) {
	return nil, fmt.Errorf("listen at %s: %w", path, errors.ErrUnsupported)
}

// ListenFor returns errors.ErrUnsupported.
func ListenFor(ctx context.Context, path string, _ int) (net.Listener, error) {
	return Listen(ctx, path)
}
