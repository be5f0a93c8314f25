package plugin

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// defaultGrace stands for a Handler.Grace of 0.
const defaultGrace = 10 * time.Second

// ServeContext answers requests that arrive at l until ctx is done. Then it closes l, gives running requests the time
// of Grace to end, and cuts the connections. It returns nil once no request is running, or an error if some have not
// ended after that time once more. If l fails, it returns earlier, with that error and after the same steps.
func (h *Handler) ServeContext(ctx context.Context, l net.Listener) error {
	connections := &connections{Listener: l, open: make(map[*connection]struct{})}
	defer context.AfterFunc(ctx, func() { _ = connections.Close() })()

	err := h.Serve(connections)
	grace := h.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	idle := h.requests.idle()
	select {
	case <-idle:
	case <-time.After(grace):
		h.log().Warn("cutting the connections of requests that have not ended", "after", grace)
	}
	connections.cut()
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		err = nil
	}
	giveUp := time.After(grace)
	for _, idle := range []<-chan struct{}{idle, h.requests.idle()} { // a request may have begun just before the cut
		select {
		case <-idle:
		case <-giveUp:
			return errors.Join(err, errNotEnded, connections.Close())
		}
	}
	return errors.Join(err, connections.Close())
}

var errNotEnded = fault.New(errdefs.ErrUnavailable, "requests of the engine do not end")

// counter counts running requests. Unlike with a sync.WaitGroup, requests may begin while somebody waits.
type counter struct {
	mu      sync.Mutex
	n       int
	waiting []chan struct{} // to be closed when n is 0
}

func (c *counter) begin() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.end
}

func (c *counter) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 {
		c.release()
	}
}

// idle returns a channel that is closed the next time that nothing is under way.
func (c *counter) idle() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	idle := make(chan struct{})
	c.waiting = append(c.waiting, idle)
	if c.n == 0 {
		c.release()
	}
	return idle
}

func (c *counter) release() {
	for _, idle := range c.waiting {
		close(idle)
	}
	c.waiting = nil
}

// connections is a listener that knows the connections it has accepted. sdk.Handler keeps its server, and so
// the server's ways to end them, to itself.
type connections struct {
	net.Listener
	closing  sync.Once
	closeErr error

	mu   sync.Mutex
	open map[*connection]struct{} // nil after cut
}

type connection struct {
	net.Conn
	list *connections
}

func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	accepted := &connection{Conn: conn, list: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	c.open[accepted] = struct{}{}
	return accepted, nil
}

func (c *connections) Close() error {
	c.closing.Do(func() { c.closeErr = c.Listener.Close() })
	return c.closeErr
}

// cut closes all connections, and those yet to be accepted.
func (c *connections) cut() {
	c.mu.Lock()
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for conn := range open {
		_ = conn.Conn.Close() // the server may have closed it before
	}
}

func (c *connection) Close() error {
	c.list.mu.Lock()
	delete(c.list.open, c)
	c.list.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite is called by a server before it closes a connection, so that the client reads the last answer.
func (c *connection) CloseWrite() error {
	if conn, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return conn.CloseWrite()
	}
	return nil
}
