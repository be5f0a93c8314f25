package image

import (
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/testfs"
)

// testRegistry is a registry in this process.
type testRegistry struct {
	host  string
	began chan struct{} // closed when the data of a blob begins to come

	mu      sync.Mutex
	uploads int           // that were begun
	fails   bool          // blobs are refused
	stalls  chan struct{} // not nil: data is read when it is closed
}

func newTestRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{began: make(chan struct{})}
	served := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	begin := sync.OnceFunc(func() { close(r.began) })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		if req.Method == http.MethodPost {
			r.uploads++
		}
		fails, stalls := r.fails, r.stalls
		r.mu.Unlock()
		if req.Method == http.MethodPatch {
			begin()
			if fails {
				_, _ = io.Copy(io.Discard, req.Body) // else the client may see the end of the connection first
				http.Error(w, "no", http.StatusForbidden)
				return
			}
			if stalls != nil {
				<-stalls
			}
		}
		served.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// uploaded counts the uploads that do begins.
func (r *testRegistry) uploaded(do func()) int {
	r.mu.Lock()
	before := r.uploads
	r.mu.Unlock()
	do()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.uploads - before
}

// waitingForUpload waits, with the first piece of a layer, until the layer's data comes to the registry.
type waitingForUpload struct {
	noProgress
	wait func()
}

func (w waitingForUpload) Start(string, int64) Task { return w }
func (w waitingForUpload) Add(int64)                { w.wait() }

// random is data that cannot be compressed.
func randomData(size int) string {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // never fails
	return string(data)
}

// TestPushWhileCompressed: a new layer goes to a registry while it is compressed, without a temporary file.
func TestPushWhileCompressed(t *testing.T) {
	s, r := newTestStore(t), newTestRegistry(t)
	s.makeLayer(t, "big", "", "big", randomData(8<<20))
	t.Setenv("TMPDIR", "/nowhere")
	wait := sync.OnceFunc(func() { testfs.Receive(t, r.began) })
	ref := mustParseDestination(t, "docker://"+r.host+"/team/big:1")
	for _, format := range []layertar.Format{layertar.Zstd, layertar.Gzip, layertar.Plain} {
		exported, err := s.ExportPromotion(t.Context(), promotion("big"), ref, ExportOptions{Format: format, Progress: waitingForUpload{wait: wait}})
		require.NoError(t, err)
		tag, err := name.NewTag(r.host + "/team/big:1")
		require.NoError(t, err)
		read, err := remote.Image(tag)
		require.NoError(t, err)
		requireValid(t, read)
		assert.Equal(t, exported.Image, imageID(t, read))
	}
}

// TestPushStops: a registry that refuses a layer, and a request that is cancelled while the registry does not read, end the push.
func TestPushStops(t *testing.T) {
	s, r := newTestStore(t), newTestRegistry(t)
	s.makeLayer(t, "big", "", "big", randomData(8<<20))
	ref := mustParseDestination(t, "docker://"+r.host+"/team/big:1")
	r.fails = true
	s.requireUnchanged(t, func() {
		_, err := s.ExportPromotion(t.Context(), promotion("big"), ref, ExportOptions{})
		require.ErrorContains(t, err, "credentials are taken from")
	})
	r.fails, r.stalls = false, make(chan struct{})
	t.Cleanup(func() { close(r.stalls) })
	ctx, cancel := context.WithCancel(t.Context())
	s.requireUnchanged(t, func() {
		_, err := s.ExportPromotion(ctx, promotion("big"), ref, ExportOptions{Progress: waitingForUpload{wait: cancel}})
		require.ErrorIs(t, err, context.Canceled)
	})
}

// TestPushKnown: layers of an image in the store that were pushed before are not compressed again, if the registry has them still.
func TestPushKnown(t *testing.T) {
	s, r, other := newTestStore(t), newTestRegistry(t), newTestRegistry(t)
	app := webOfApp(t, s)
	push := func(to *testRegistry, format layertar.Format) []string {
		progress := &noting{}
		exported, err := s.ExportPromotion(t.Context(), promotion("web"), mustParseDestination(t, "docker://"+to.host+"/team/web:1"), ExportOptions{Format: format, Progress: progress})
		require.NoError(t, err)
		assert.Equal(t, app.DiffIDs(), exported.Layers[:2])
		tag, err := name.NewTag(to.host + "/team/web:1")
		require.NoError(t, err)
		read, err := remote.Image(tag)
		require.NoError(t, err)
		requireValid(t, read)
		return progress.notes
	}
	again := []string{"already there", "already there", "done"}
	whole := []string{"done", "done", "done"}
	assert.Equal(t, whole, push(r, layertar.Gzip))
	assert.Equal(t, again, push(r, layertar.Gzip))
	assert.Equal(t, whole, push(r, layertar.Zstd), "in another format")
	assert.Equal(t, again, push(r, layertar.Zstd))
	assert.Equal(t, whole, push(other, layertar.Gzip), "another registry has nothing")
	require.NoError(t, os.WriteFile(s.knownFile(app.Top()), []byte("torn"), 0o600))
	assert.Equal(t, []string{"already there", "done", "done"}, push(r, layertar.Gzip))
	assert.Equal(t, again, push(r, layertar.Gzip))

	require.NoError(t, s.driver.Remove("web"))
	require.NoError(t, s.driver.Remove("between"))
	_, err := s.Remove(t.Context(), "app:1")
	require.NoError(t, err)
	assertGone(t, s)
	for _, layer := range app.Layers() {
		assert.NoFileExists(t, s.knownFile(layer))
	}
}

// TestPushOrigin: stored layers of a container's image that the registry has are neither read nor sent again.
func TestPushOrigin(t *testing.T) {
	s, c, r := newTestStore(t), newTestContainerd(t), newTestRegistry(t)
	webOfApp(t, s)
	p := promotion("web")
	p.Origin = c.origin(c.mustPromote(s, promotion("between"), "base:1", ExportOptions{Format: layertar.Gzip}), "between")
	ref := mustParseDestination(t, "docker://"+r.host+"/team/web:1")
	push := func() int {
		return r.uploaded(func() {
			_, err := s.ExportPromotion(t.Context(), p, ref, ExportOptions{Format: layertar.Zstd})
			require.NoError(t, err)
		})
	}
	assert.Equal(t, 5, push(), "three layers of the image, the new one and the config")
	for i := range p.Origin.Layers {
		p.Origin.Layers[i].Open = func(context.Context) (io.ReadCloser, error) { return nil, errFailing }
	}
	assert.Equal(t, 1, push(), "the new layer")
}
