package image

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// webOfApp imports an image of two layers as app:1, and makes the layer web from it, with a layer between.
func webOfApp(t *testing.T, s *Store) *Image {
	t.Helper()
	archive := writeDockerArchive(t, map[string]v1.Image{"app:1": makeImage(t, baseTar(t), upperTar(t))})
	app := s.mustImport(t, "docker-archive:"+archive, ImportOptions{Name: "app:1"}).Image
	s.makeLayer(t, "between", app.Top(), "etc/between", "between")
	s.makeLayer(t, "web", "between", "etc/web", "web")
	return app
}

func promotion(volume string) Promotion {
	return Promotion{Volume: volume, Name: "web@before", Created: time.Unix(1700000000, 0).UTC(), Comment: "why"}
}

func TestPromote(t *testing.T) { testPromote(t, newTestStore(t)) }

func testPromote(t *testing.T, s *Store) {
	app := webOfApp(t, s)
	promoted, err := s.Promote(t.Context(), promotion("web"), ImportOptions{Name: "web:1"})
	require.NoError(t, err)
	image := promoted.Image
	assert.Equal(t, app.DiffIDs(), image.DiffIDs()[:2])
	require.Len(t, image.DiffIDs(), 3, "the layers between are one")
	assert.Equal(t, app.Layers(), promoted.Reused)
	assert.Equal(t, []string{image.Top()}, promoted.Made)
	assert.Equal(t, "layer:web@before", image.Origin)
	var config struct{ Config json.RawMessage }
	require.NoError(t, json.Unmarshal(image.Config, &config))
	assert.JSONEq(t, `{"Env":["PATH=/bin"]}`, string(config.Config))
	require.Len(t, image.parsed.History, 3)
	last := image.parsed.History[2]
	assert.Equal(t, []string{"cowshed promote web@before", "why"}, []string{last.CreatedBy, last.Comment})
	assert.Equal(t, time.Unix(1700000000, 0).UTC(), last.Created.UTC())
	c, err := s.driver.Compare(t.Context(), image.Top(), "web", cowcommon.Walk)
	require.NoError(t, err)
	assert.Empty(t, c.Changes, "the trees are the same")
	require.NoError(t, c.Close())
	v, err := s.driver.Backend().Stat(t.Context(), image.Top())
	require.NoError(t, err)
	assert.Equal(t, app.Top(), v.Parent)

	t.Run("again", func(t *testing.T) {
		again, err := s.Promote(t.Context(), promotion("web"), ImportOptions{Name: "web:2"})
		require.NoError(t, err)
		assert.Equal(t, image.ID(), again.Image.ID())
		assert.Empty(t, again.Made)
		_, err = s.Promote(t.Context(), promotion("between"), ImportOptions{Name: "web:2"})
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
		replaced, err := s.Promote(t.Context(), promotion("between"), ImportOptions{Name: "web:2", Replace: true})
		require.NoError(t, err)
		assert.NotEqual(t, image.Top(), replaced.Image.Top())
	})
	t.Run("to a place", func(t *testing.T) {
		dir := t.TempDir()
		for _, to := range []string{"oci:" + dir + "/layout:web", "oci-archive:" + dir + "/oci.tar:web", "docker-archive:" + dir + "/docker.tar:web:3"} {
			exported, err := s.ExportPromotion(t.Context(), promotion("web"), mustParseDestination(t, to), ExportOptions{Format: layertar.Plain})
			require.NoError(t, err)
			assert.Equal(t, image.DiffIDs(), exported.Layers)
			assert.Equal(t, image.ID(), exported.Image)
			assert.Empty(t, exported.Was)
		}
		s.requireUnchanged(t, func() { s.mustImport(t, "docker-archive:"+dir+"/docker.tar", ImportOptions{Name: "web:1"}) })
		exported := s.mustExport(t, "web:1", "oci:"+dir+"/again:web", ExportOptions{Exact: true})
		assert.Equal(t, image.ID(), exported.Image)
	})
	t.Run("SOURCE_DATE_EPOCH", func(t *testing.T) {
		epoch := time.Unix(1500000000, 0).UTC()
		p := promotion("web")
		p.Epoch = &epoch
		of, err := s.Promote(t.Context(), p, ImportOptions{Name: "epoch:1"})
		require.NoError(t, err)
		assert.Equal(t, epoch, *of.Image.parsed.Created)
		exported, err := s.ExportPromotion(t.Context(), p, mustParseDestination(t, "oci:"+t.TempDir()+"/x:1"), ExportOptions{})
		require.NoError(t, err)
		assert.Equal(t, of.Image.ID(), exported.Image)
	})
	t.Run("on nothing", func(t *testing.T) {
		s.makeLayer(t, "scratch", "", "file", "data")
		of, err := s.Promote(t.Context(), promotion("scratch"), ImportOptions{Name: "scratch:1"})
		require.NoError(t, err)
		assert.Len(t, of.Image.DiffIDs(), 1)

		// An image with the name of the layer is not the layer.
		_, err = s.Promote(t.Context(), promotion("web"), ImportOptions{Name: "scratch"})
		require.NoError(t, err)
		again, err := s.Promote(t.Context(), promotion("scratch"), ImportOptions{Name: "scratch:2"})
		require.NoError(t, err)
		assert.Equal(t, of.Image.ID(), again.Image.ID())
	})
	t.Run("refused", func(t *testing.T) {
		s.requireUnchanged(t, func() {
			_, err := s.Promote(t.Context(), promotion(app.Top()), ImportOptions{Name: "x:1"})
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			_, err = s.Promote(t.Context(), promotion("none"), ImportOptions{Name: "x:1"})
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			_, err = s.Promote(t.Context(), promotion("web"), ImportOptions{})
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		})
	})
}

// TestPromoteRemovals removes the layer, the image that it was made from and the new image in each order.
func TestPromoteRemovals(t *testing.T) { testPromoteRemovals(t, newTestStore) }

func testPromoteRemovals(t *testing.T, newStore func(t *testing.T) *Store) {
	remove := map[string]func(s *Store) error{
		"web":   func(s *Store) error { return s.driver.Remove("web") },
		"app:1": func(s *Store) error { _, err := s.Remove(context.Background(), "app:1"); return err },
		"web:1": func(s *Store) error { _, err := s.Remove(context.Background(), "web:1"); return err },
	}
	for _, order := range []string{"web app:1 web:1", "web web:1 app:1", "app:1 web web:1", "app:1 web:1 web", "web:1 web app:1", "web:1 app:1 web"} {
		t.Run(order, func(t *testing.T) {
			s := newStore(t)
			app := webOfApp(t, s)
			promoted, err := s.Promote(t.Context(), promotion("web"), ImportOptions{Name: "web:1"})
			require.NoError(t, err)
			for _, name := range strings.Fields(order) {
				require.NoError(t, remove[name](s))
				if _, err := s.Get("web:1"); err == nil {
					assert.Subset(t, s.layerNames(t), promoted.Image.Layers())
				}
			}
			require.NoError(t, s.driver.Remove("between"))
			for i := range app.Layers() { // those that stayed for between
				if ok, err := s.layerExists(t.Context(), app.Layers()[1-i]); ok || err != nil {
					require.NoError(t, s.RemoveLayer(t.Context(), app.Layers()[1-i]))
				}
			}
			assertGone(t, s)
		})
	}
}

// stopping cancels when the count-th piece of a layer has been read.
type stopping struct {
	noProgress
	count  int
	cancel func()
}

func (s *stopping) Start(string, int64) Task { return s }

func (s *stopping) Add(int64) {
	if s.count--; s.count <= 0 {
		s.cancel()
	}
}

// TestPromoteStopped: a promotion that is stopped leaves nothing, in the store and elsewhere.
func TestPromoteStopped(t *testing.T) {
	s := newTestStore(t)
	app := webOfApp(t, s)
	s.makeLayer(t, "big", app.Top(), "big", strings.Repeat("x", 20<<20))
	dir := t.TempDir()
	for count := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		s.requireUnchanged(t, func() {
			_, err := s.Promote(ctx, promotion("big"), ImportOptions{Name: "web:1", Progress: &stopping{count: count, cancel: cancel}})
			require.ErrorIs(t, err, context.Canceled)
		})
		ctx, cancel = context.WithCancel(t.Context())
		ref := mustParseDestination(t, "oci:"+dir+"/layout:1")
		_, err := s.ExportPromotion(ctx, promotion("big"), ref, ExportOptions{Progress: &stopping{count: count, cancel: cancel}})
		require.ErrorIs(t, err, context.Canceled)
		assert.NoDirExists(t, dir+"/layout")
	}
}

// TestPromoteReuses: layers that a layout has are not written again, unless they are of another form or not whole.
func TestPromoteReuses(t *testing.T) {
	s := newTestStore(t)
	app := webOfApp(t, s)
	dir := t.TempDir()
	exported := s.mustExport(t, "app:1", "oci:"+dir+":app", ExportOptions{Format: layertar.Gzip})
	promote := func(to string, format layertar.Format) (notes []string) {
		progress := &noting{}
		exported, err := s.ExportPromotion(t.Context(), promotion("web"), mustParseDestination(t, to), ExportOptions{Format: format, Progress: progress})
		require.NoError(t, err)
		assert.Equal(t, app.DiffIDs(), exported.Layers[:2])
		return progress.notes
	}
	assert.Equal(t, []string{"already there", "already there", "done"}, promote("oci:"+dir+":web", layertar.Gzip))
	s.mustImport(t, "oci:"+dir+":web", ImportOptions{Name: "web:1"})
	assert.Equal(t, []string{"done", "done", "done"}, promote("oci:"+dir+":zstd", layertar.Zstd))
	s.mustImport(t, "oci:"+dir+":zstd", ImportOptions{Name: "web:2"})

	src, err := Open(t.Context(), mustParse(t, "oci:"+dir+":app"), OpenOptions{})
	require.NoError(t, err)
	upper := filepath.Join(dir, blobPath(src.layers[1].digest))
	require.NoError(t, src.Close())
	require.NoError(t, os.Truncate(upper, 10))
	assert.Equal(t, []string{"already there", "done", "done"}, promote("oci:"+dir+":cut", layertar.Gzip))
	require.NoError(t, os.Remove(filepath.Join(dir, blobPath(exported.Manifest))))
	assert.Equal(t, []string{"already there", "already there", "done"}, promote("oci:"+dir+":again", layertar.Gzip))
	s.mustImport(t, "oci:"+dir+":again", ImportOptions{Name: "web:3"})
}

// noting notes how each task ends.
type noting struct {
	noProgress
	notes []string
}

func (n *noting) Start(string, int64) Task { return n }
func (n *noting) End(note string)          { n.notes = append(n.notes, note) }
