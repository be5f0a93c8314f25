//go:build !linux

package unixsocket

import (
	"errors"
	"fmt"
	"net"
)

// Listen returns errors.ErrUnsupported.
func Listen(path string) (net.Listener, error) {
	return nil, fmt.Errorf("listen at %s: %w", path, errors.ErrUnsupported)
}
