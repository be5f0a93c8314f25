//go:build !linux

package plugin

import (
	"errors"
	"fmt"
	"net"
)

// Listen returns errors.ErrUnsupported: engines of this platform have no graph driver plugins that could be
// served.
func Listen(path string) (net.Listener, error) {
	return nil, fmt.Errorf("listen at %s: %w", path, errors.ErrUnsupported)
}
