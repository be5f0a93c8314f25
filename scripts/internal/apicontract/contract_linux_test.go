package apicontract

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/internal/apiserver"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// oneStore has a store for both layers and forks of containers.
type oneStore struct{ *layerstore.Store }

// IsContainer implements apiserver.Stores.
func (o oneStore) IsContainer(ref string) bool { return layerref.Is(ref) }

// Open implements apiserver.Stores.
func (o oneStore) Open(context.Context) (*layerstore.Store, func(), error) {
	return o.Store, func() {}, nil
}

// OpenContainers implements apiserver.Stores.
func (o oneStore) OpenContainers(context.Context, []string) (*layerstore.Store, func(), error) {
	s := *o.Store
	s.Containers = map[string]string{"docker:db": containerVolume}
	return &s, func() {}, nil
}

// LimitContainer implements apiserver.Stores.
func (o oneStore) LimitContainer(ctx context.Context, _ string, bytes uint64) error {
	return o.Driver.SetLimit(ctx, containerVolume, bytes)
}

// containerVolume is the volume of the one container, docker:db.
const containerVolume = "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// contract sends requests to a server, and compares each with the description.
type contract struct {
	t         *testing.T
	store     *layerstore.Store
	client    *http.Client
	document  libopenapi.Document
	validator validator.Validator
	seen      map[string]bool // operations, as METHOD PATH of the description
}

func newContract(t *testing.T) *contract {
	t.Helper()
	root := filepath.Join(testfs.Btrfs(t), "root")
	require.NoError(t, os.Mkdir(root, 0o711))
	log := slog.New(slog.DiscardHandler)
	store, err := layerstore.Open(t.Context(), layerstore.Options{Root: root, Driver: "btrfs", Log: log})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Driver.Cleanup()) })
	server := apiserver.New(apiserver.Options{Version: "test", Stores: oneStore{store}, StopTimeout: 5 * time.Second, Log: log})
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	c := &contract{t: t, store: store, seen: make(map[string]bool)}
	c.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	c.document, err = libopenapi.NewDocument(api.OpenAPI)
	require.NoError(t, err)
	var errs []error
	c.validator, errs = validator.NewValidator(c.document)
	require.Empty(t, errs)
	return c
}

// request makes a request; body is nil, a text, or a value in JSON.
func (c *contract) request(method, path string, body any) *http.Request {
	c.t.Helper()
	var reader io.Reader = http.NoBody
	switch body := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(body)
	default:
		data, err := json.Marshal(body)
		require.NoError(c.t, err)
		reader = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(c.t.Context(), method, "http://cowshed"+path, reader)
	require.NoError(c.t, err)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

// send sends a request, and returns the answer, which must be as described. operation is the path in the description.
func (c *contract) send(operation, method, path string, body any) (status int, content []byte) {
	c.t.Helper()
	answer, err := c.client.Do(c.request(method, path, body))
	require.NoError(c.t, err)
	content, err = io.ReadAll(answer.Body)
	require.NoError(c.t, err)
	require.NoError(c.t, answer.Body.Close())
	parts := [][]byte{content}
	if answer.Header.Get("Content-Type") == api.MediaTypeProgress { // each line is as described
		parts = slices.Collect(bytes.Lines(content))
	}
	for _, part := range parts {
		answer.Body = io.NopCloser(bytes.NewReader(part))
		_, errs := c.validator.ValidateHttpResponse(c.request(method, path, body), answer)
		for _, e := range errs {
			assert.Fail(c.t, "the answer is not as described", "%s %s: %d %s: %v", method, path, answer.StatusCode, part, e)
		}
	}
	c.seen[method+" "+operation] = true
	return answer.StatusCode, content
}

// ok is send of a request that is as described too, and succeeds.
func (c *contract) ok(operation, method, path string, body any) []byte {
	c.t.Helper()
	_, errs := c.validator.ValidateHttpRequest(c.request(method, path, body))
	for _, e := range errs {
		assert.Fail(c.t, "the request is not as described", "%s %s: %v", method, path, e)
	}
	status, content := c.send(operation, method, path, body)
	assert.Less(c.t, status, 300, "%s %s: %s", method, path, content)
	return content
}

func (c *contract) fails(status int, operation, method, path string, body any) {
	c.t.Helper()
	got, content := c.send(operation, method, path, body)
	assert.Equal(c.t, status, got, "%s %s: %s", method, path, content)
}

// write writes a file of a layer.
func (c *contract) write(layer, name, content string) {
	c.t.Helper()
	require.NoError(c.t, c.store.Mounted(c.t.Context(), layer, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)
	}))
}

// TestContract: each operation of the description succeeds and fails as described.
func TestContract(t *testing.T) {
	c := newContract(t)
	const layers, layer = "/v1/layers", "/v1/layers/{layer}"
	c.ok("/v1/openapi.yaml", "GET", "/v1/openapi.yaml", nil)
	c.ok("/v1/info", "GET", "/v1/info", nil)
	c.ok(layers, "POST", "/v1/layers", api.NewLayer{Name: "web", Size: "1G"})
	c.fails(409, layers, "POST", "/v1/layers", api.NewLayer{Name: "web"})
	c.fails(400, layers, "POST", "/v1/layers", `{"name": 5}`)
	c.ok(layers, "GET", "/v1/layers?forks=false", nil)
	c.fails(400, layers, "GET", "/v1/layers?forks=perhaps", nil)
	c.ok(layer, "GET", "/v1/layers/web", nil)
	c.fails(404, layer, "GET", "/v1/layers/none", nil)

	c.ok(layer+"/forks", "POST", "/v1/layers/web/forks", api.NewForks{Name: "try", Count: 3, Size: "2G", TTL: "1h", Labels: map[string]string{"a": "b"}})
	c.fails(404, layer+"/forks", "POST", "/v1/layers/none/forks", api.NewForks{})
	c.ok(layer, "GET", "/v1/layers/try-1", nil)
	c.ok(layer+"/snapshots", "POST", "/v1/layers/web/snapshots", api.NewSnapshot{Name: "before", Message: "why"})
	c.fails(409, layer+"/snapshots", "POST", "/v1/layers/web/snapshots", api.NewSnapshot{Name: "before"})
	c.ok(layer+"/snapshots", "GET", "/v1/layers/web/snapshots", nil)
	c.write("web", "file", "1")
	c.write("try-1", "file", "2")
	c.ok(layer+"/changes", "GET", "/v1/layers/web/changes", nil)
	c.ok(layer+"/changes", "GET", "/v1/layers/web/changes?since=web@before&walk=true", nil)
	c.fails(400, layer+"/changes", "GET", "/v1/layers/web/changes?since=web@before&whole=true", nil)
	c.ok(layer+"/diff", "GET", "/v1/layers/web/diff?compress=gzip", nil)
	c.fails(404, layer+"/diff", "GET", "/v1/layers/web/diff?since=none", nil)
	c.ok(layer+"/log", "GET", "/v1/layers/web/log", nil)
	c.ok(layer+"/usage", "GET", "/v1/layers/web/usage", nil)
	c.ok(layer+"/limit", "PUT", "/v1/layers/try-2/limit", api.NewLimit{Size: "3G"})
	c.fails(400, layer+"/limit", "PUT", "/v1/layers/try-2/limit", api.NewLimit{Size: "much"})
	require.NoError(t, c.store.Create(t.Context(), containerVolume, layerstore.CreateOptions{}))
	c.ok(layer+"/limit", "PUT", "/v1/layers/docker:db/limit", api.NewLimit{Size: "3G"})
	c.fails(409, layer+"/merge", "POST", "/v1/layers/try-1/merge", api.NewMerge{})
	c.ok(layer+"/merge", "POST", "/v1/layers/try-1/merge", api.NewMerge{Into: "web", Strategy: api.Ours, Paths: []string{"/file"}})
	c.ok(layer+"/rollback", "POST", "/v1/layers/web/rollback", api.NewRollback{Snapshot: "before"})
	c.fails(404, layer+"/rollback", "POST", "/v1/layers/web/rollback", api.NewRollback{Snapshot: "none"})
	c.ok(layer+"/export", "GET", "/v1/layers/web/export?format=oci-archive&compress=zstd&name=web:1", nil)
	c.fails(400, layer+"/export", "GET", "/v1/layers/web/export?format=zip", nil)
	c.ok(layer+"/stream", "GET", "/v1/layers/web@before/stream?withParents=true", nil)
	c.fails(404, layer+"/stream", "GET", "/v1/layers/web/stream?from=none", nil)
	c.ok(layer+"/promote", "POST", "/v1/layers/web/promote", api.NewImage{To: "web:1", Message: "why"})
	c.fails(400, layer+"/promote", "POST", "/v1/layers/web/promote", api.NewImage{To: "oci:relative:web"})
	c.ok(layer+"/snapshots/{snapshot}", "DELETE", "/v1/layers/web/snapshots/before", nil)
	c.fails(404, layer+"/snapshots/{snapshot}", "DELETE", "/v1/layers/web/snapshots/before", nil)
	c.ok(layer, "DELETE", "/v1/layers/web?force=true", nil)
	c.fails(404, layer, "DELETE", "/v1/layers/web", nil)

	model, err := c.document.BuildV3Model()
	require.NoError(t, err)
	for path, item := range model.Model.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().KeysFromOldest() {
			assert.True(t, c.seen[strings.ToUpper(method)+" "+path], "%s %s is not tested", method, path)
		}
	}
}
