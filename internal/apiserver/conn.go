package apiserver

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// listener accepts connections of a unix socket whose other end the kernel describes, and closes those that are too many.
type listener struct {
	net.Listener
	gate *gate
	peer func(net.Conn) (Peer, error)
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
		leave, kind := l.gate.enter(peer.UID)
		if kind != "" {
			_ = conn.Close()
			continue
		}
		return &peerConn{Conn: conn, peer: peer, leave: sync.OnceFunc(leave)}, nil
	}
}

// peerConn is a connection with its peer.
type peerConn struct {
	net.Conn
	peer  Peer
	leave func()
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

type peerKey struct{}

// withPeer is the context of the requests of a connection.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*peerConn); ok {
		ctx = context.WithValue(ctx, peerKey{}, c.peer)
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
}

var usualPatience = patience{header: 10 * time.Second, body: 30 * time.Second, idle: 2 * time.Minute, write: 30 * time.Second}

// Bounds of requests and answers.
const (
	maxHeader = 16 << 10
	maxBody   = 1 << 20
	writeSize = 32 << 10
)

var errNotUnix = errors.New("not a connection of a unix socket")
