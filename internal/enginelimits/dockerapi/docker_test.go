package dockerapi

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// serve answers requests as an engine, and returns a client of it.
func serve(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	client, err := NewClient("unix://" + socket)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// TestContainer: answers of the engine, also those that no engine should give.
func TestContainer(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/containers/web/json":
			fmt.Fprint(w, `{"Id": "1", "Name": "/web", "HostConfig": {"StorageOpt": {"size": "2G"}}, "Other": []}`)
		case "/containers/..%2Fimages/json":
			http.Error(w, `{"message": "no such container"}`, http.StatusNotFound)
		case "/containers/broken/json":
			fmt.Fprint(w, `{"Id": 1`)
		case "/containers/large/json":
			fmt.Fprintf(w, `{"Id": "%s"}`, strings.Repeat("1", maxObject))
		default:
			http.Error(w, "<html>", http.StatusInternalServerError)
		}
	})
	c, err := client.Container(t.Context(), "web")
	require.NoError(t, err)
	assert.Equal(t, "1", c.ID)
	assert.Equal(t, map[string]string{"size": "2G"}, c.HostConfig.StorageOpt)
	_, err = client.Container(t.Context(), "../images")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorContains(t, err, "no such container")
	for _, name := range []string{"broken", "large", "other"} {
		_, err = client.Container(t.Context(), name)
		require.Error(t, err, name)
	}
}

// TestEvents: a stream of events ends with the engine, and with an event that is too large.
func TestEvents(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		assert.JSONEq(t, `{"type": ["container"], "event": ["create", "destroy"]}`, r.URL.Query().Get("filters"))
		fmt.Fprint(w, `{"Action": "create", "Actor": {"ID": "1"}}`+"\n"+`{"Action": "destroy", "Actor": {"ID": "1"}}`)
		fmt.Fprintf(w, `{"Action": "%s"}`, strings.Repeat("1", 2*maxObject))
	})
	stream, err := client.events(t.Context())
	require.NoError(t, err)
	defer stream.Close()
	for _, want := range []string{created, removed} {
		e, err := stream.next()
		require.NoError(t, err)
		assert.Equal(t, want, e.Action)
		assert.Equal(t, "1", e.Actor.ID)
	}
	_, err = stream.next()
	require.Error(t, err)
}

func TestCheckAddress(t *testing.T) {
	require.NoError(t, CheckAddress(DefaultAddress))
	for _, address := range []string{"", "/run/docker.sock", "tcp://127.0.0.1:2375", "unix://run/docker.sock", "unix://"} {
		require.ErrorIs(t, CheckAddress(address), errdefs.ErrInvalidArgument, address)
	}
}
