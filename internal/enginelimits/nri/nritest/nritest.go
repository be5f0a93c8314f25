// Package nritest is containerd's side of NRI, for tests.
package nritest

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// Runtime is containerd's side of a connection.
type Runtime struct {
	api.RuntimeService
	Mux        multiplex.Mux
	Plugin     api.PluginService
	registered chan *api.RegisterPluginRequest
}

// RegisterPlugin implements api.RuntimeService.
func (r *Runtime) RegisterPlugin(_ context.Context, req *api.RegisterPluginRequest) (*api.Empty, error) {
	r.registered <- req
	return &api.Empty{}, nil
}

// Accept waits for the plugin to connect and to register.
func Accept(t testing.TB, l net.Listener) *Runtime {
	t.Helper()
	require.NoError(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(testfs.Patience)))
	conn, err := l.Accept()
	require.NoError(t, err)
	// The Mux drops messages of the plugin to a connection that is not open yet.
	r := &Runtime{Mux: multiplex.Multiplex(conn, multiplex.WithBlockedRead()), registered: make(chan *api.RegisterPluginRequest, 1)}
	t.Cleanup(func() {
		require.NoError(t, r.Mux.Close())
		r.Mux.Unblock()
	})
	listener, err := r.Mux.Listen(multiplex.RuntimeServiceConn)
	require.NoError(t, err)
	server, err := ttrpc.NewServer()
	require.NoError(t, err)
	api.RegisterRuntimeService(server, r)
	go func() { _ = server.Serve(t.Context(), listener) }()
	t.Cleanup(func() { _ = server.Close() })
	to, err := r.Mux.Open(multiplex.PluginServiceConn)
	require.NoError(t, err)
	r.Plugin = api.NewPluginClient(ttrpc.NewClient(to))
	r.Mux.Unblock()
	assert.Equal(t, "cowshed", testfs.Receive(t, r.registered).GetPluginName())
	return r
}
