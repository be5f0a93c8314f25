package apiserver

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// listener accepts connections of a unix socket whose other end the kernel describes, and refuses those that are too many.
type listener struct {
	net.Listener
	gate        *gate
	peer        func(net.Conn) (Peer, error)
	sender      func(Peer) sender
	connections *connections
	refusals    *refusals
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := l.peer(conn)
		if err != nil { // it has gone
			_ = conn.Close()
			continue
		}
		leave, kind := l.gate.enter(l.sender(peer))
		if kind != "" {
			l.refusals.answer(conn, tooMany(kind, l.sender(peer), "connections"))
			continue
		}
		c := &peerConn{Conn: conn, peer: peer}
		c.leave = sync.OnceFunc(func() {
			l.connections.remove(c)
			leave()
		})
		l.connections.add(c)
		return c, nil
	}
}

// peerConn is a connection with its peer.
type peerConn struct {
	net.Conn
	peer  Peer
	leave func()

	mu       sync.Mutex
	cancel   context.CancelFunc // of its requests
	stopped  bool               // no change begins any more
	changing bool               // a request on it changes something
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	defer c.leave()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
	return c.Conn.Close()
}

// beginChange notes that a request on the connection begins to change something. It reports false after stop.
func (c *peerConn) beginChange() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changing = c.changing || !c.stopped
	return c.changing
}

func (c *peerConn) endChange() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changing = false
}

// stop cancels the request on the connection, unless that changes something. It reports whether it has.
func (c *peerConn) stop() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.changing {
		return false
	}
	if c.cancel != nil {
		c.cancel()
	}
	return true
}

// connections are those that are open.
type connections struct {
	last time.Duration // for an answer that says that the server ends

	mu      sync.Mutex
	open    map[*peerConn]bool
	stopped bool
}

func (c *connections) add(conn *peerConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn] = true
	if c.stopped {
		c.end(conn)
	}
}

func (c *connections) remove(conn *peerConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

// stop cancels the requests that change nothing, and soon closes their connections.
func (c *connections) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	for conn := range c.open {
		c.end(conn)
	}
}

func (c *connections) end(conn *peerConn) {
	if conn.stop() {
		time.AfterFunc(c.last, func() { _ = conn.Close() }) // whether its client reads the answer or not
	}
}

type connKey struct{}

type peerKey struct{}

// withPeer is the context of the requests of a connection.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	c, ok := conn.(*peerConn)
	if !ok {
		return ctx
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx = context.WithValue(context.WithValue(ctx, peerKey{}, c.peer), connKey{}, c)
	ctx, c.cancel = context.WithCancel(ctx)
	if c.stopped {
		c.cancel()
	}
	return ctx
}

// peerOf is the sender of a request. ok is false if nothing names it.
func peerOf(ctx context.Context) (peer Peer, ok bool) {
	peer, ok = ctx.Value(peerKey{}).(Peer)
	return peer, ok
}

// patience is how long a client may keep the server waiting.
type patience struct {
	header, body, idle time.Duration
	write              time.Duration // for each writeSize bytes
	rate               int64         // bytes of an answer that a user but root reads in a second, on average
	last               time.Duration // for an answer that ends the connection
}

var usualPatience = patience{header: 10 * time.Second, body: 30 * time.Second, idle: 2 * time.Minute, write: 30 * time.Second,
	rate: 256 << 10, last: time.Second}

// Bounds of requests and answers.
const (
	maxHeader = 16 << 10
	maxBody   = 1 << 20
	writeSize = 32 << 10
)

var errNotUnix = errors.New("not a connection of a unix socket")
