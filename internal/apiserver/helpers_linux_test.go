package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// fixedStores are a store and one for containers that are open all the time.
type fixedStores struct{ store, containers *layerstore.Store }

func (f fixedStores) IsContainer(ref string) bool { return layerref.Is(ref) }

func (f fixedStores) Open(context.Context) (*layerstore.Store, func(), error) {
	return f.store, func() {}, nil
}

// OpenContainers takes the name in a reference such as docker:NAME for that of the volume.
func (f fixedStores) OpenContainers(_ context.Context, refs []string) (*layerstore.Store, func(), error) {
	s := *f.containers
	s.Containers = make(map[string]string)
	for _, ref := range refs {
		parsed, err := layerref.Parse(ref)
		if err != nil {
			return nil, nil, err
		}
		if parsed.Name == "gone" {
			return nil, nil, fault.New(errdefs.ErrNotFound, "container gone")
		}
		s.Containers[layerref.Layer(ref)] = parsed.Name
	}
	return &s, func() {}, nil
}

// LimitContainer limits the volume that the reference names.
func (f fixedStores) LimitContainer(ctx context.Context, ref string, bytes uint64) error {
	s, _, err := f.OpenContainers(ctx, []string{ref})
	if err != nil {
		return err
	}
	return s.Driver.SetLimit(ctx, s.Containers[ref], bytes)
}

// served is a server with a store on a btrfs.
type served struct {
	t      testing.TB
	stores fixedStores
	server *Server
	socket string
	peer   atomic.Pointer[Peer] // of each new connection
	stop   func() error
}

func openStore(t testing.TB, root string) *layerstore.Store {
	t.Helper()
	s, err := layerstore.Open(t.Context(), layerstore.Options{Root: root, Driver: "btrfs", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Driver.Cleanup()) })
	return s
}

// longPatience is that of a server on a machine that is busy. No request ends because somebody keeps the server waiting.
var longPatience = patience{header: time.Hour, body: time.Hour, idle: time.Hour, write: time.Hour, rate: usualPatience.rate, last: usualPatience.last}

// newServed starts a server with the namespaces ci and dev.
func newServed(t testing.TB, change func(opts *Options)) *served {
	t.Helper()
	mnt := testfs.Btrfs(t)
	s := &served{t: t, socket: filepath.Join(t.TempDir(), "api.sock")}
	for _, dir := range []string{"root", "containers"} {
		require.NoError(t, os.Mkdir(filepath.Join(mnt, dir), 0o711))
	}
	s.stores = fixedStores{openStore(t, filepath.Join(mnt, "root")), openStore(t, filepath.Join(mnt, "containers"))}
	opts := testOptions(s.stores)
	opts.patience = longPatience
	if change != nil {
		change(&opts)
	}
	s.server = New(opts)
	l, err := net.Listen("unix", s.socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s.as(0)
	go func() { ended <- s.server.serve(ctx, l, func(net.Conn) (Peer, error) { return *s.peer.Load(), nil }) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return testfs.Result(ended)
	})
	t.Cleanup(func() { require.NoError(t, s.stop()) })
	return s
}

// as makes the senders of later requests a user.
func (s *served) as(uid uint32) *served {
	p := peerOfUser(uid)
	s.peer.Store(&p)
	return s
}

// client connects for each request.
func (s *served) client() *http.Client {
	return &http.Client{Timeout: testfs.Lifetime, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
	}}}
}

// answered is an answer that was read.
type answered struct {
	status int
	header http.Header
	body   []byte
}

// send sends a request. body is nil, a text, or a value in JSON.
func (s *served) send(method, path string, body any) answered {
	s.t.Helper()
	a, err := s.try(method, path, body)
	require.NoError(s.t, err)
	return a
}

func (s *served) try(method, path string, body any) (a answered, err error) {
	var reader io.Reader = http.NoBody
	switch body := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(body)
	default:
		data, err := json.Marshal(body)
		if err != nil {
			return a, err
		}
		reader = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, "http://cowshed"+path, reader)
	if err != nil {
		return a, err
	}
	response, err := s.client().Do(r)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	a = answered{status: response.StatusCode, header: response.Header}
	a.body, err = io.ReadAll(response.Body)
	return a, err
}

// ok sends a request that succeeds, and reads its JSON into a value, which may be nil.
func (s *served) ok(method, path string, body, into any) {
	s.t.Helper()
	a := s.send(method, path, body)
	require.Less(s.t, a.status, 300, "%s %s: %s", method, path, a.body)
	if into != nil {
		require.NoError(s.t, json.Unmarshal(a.body, into), "%s", a.body)
	}
}

// fails sends a request that fails with a kind of error.
func (s *served) fails(kind api.Kind, method, path string, body any) *api.Error {
	s.t.Helper()
	a := s.send(method, path, body)
	e := new(api.Error)
	require.NoError(s.t, json.Unmarshal(a.body, e), "%s %s: %s", method, path, a.body)
	assert.Equal(s.t, kind, e.Kind, "%s %s: %s", method, path, a.body)
	assert.Equal(s.t, kind.Status(), a.status)
	assert.NotEmpty(s.t, e.Message)
	return e
}

// write writes a file of a layer.
func (s *served) write(store *layerstore.Store, layer, name, content string) {
	s.t.Helper()
	require.NoError(s.t, store.Mounted(s.t.Context(), layer, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)
	}))
}

func (s *served) read(store *layerstore.Store, layer, name string) (content string) {
	s.t.Helper()
	require.NoError(s.t, store.Mounted(s.t.Context(), layer, func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, name))
		content = string(data)
		return err
	}))
	return content
}

// newBase makes the layer base with a file, and a container of the name web.
func (s *served) newBase() *served {
	s.t.Helper()
	for store, name := range map[*layerstore.Store]string{s.stores.store: "base", s.stores.containers: "web"} {
		require.NoError(s.t, store.Create(s.t.Context(), name, layerstore.CreateOptions{}))
		s.write(store, name, "file", "1")
	}
	return s
}

func (s *served) names(path string) []string {
	s.t.Helper()
	var l api.Layers
	s.ok("GET", path, nil, &l)
	names := make([]string, 0, len(l.Layers))
	for _, one := range l.Layers {
		names = append(names, one.Name)
	}
	return names
}

func at(format string, args ...any) string { return api.Prefix + fmt.Sprintf(format, args...) }
