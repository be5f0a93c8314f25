package plugin

import (
	"context"
	"net"

	"github.com/cowshed/cowshed/internal/unixsocket"
)

// Listen makes a socket at path, with its directory if need be, that only its owner (root) can connect to. Closing
// the listener removes it. On platforms other than Linux it returns errors.ErrUnsupported.
//
// A socket that a process left behind is replaced. Returns errdefs.ErrAlreadyExists if a process listens at it, and
// errdefs.ErrFailedPrecondition if path is not a socket. It gives up when ctx ends.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	return unixsocket.Listen(ctx, path)
}
