package image

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/containerdapi"
)

// testContainerd is a containerd in this process: its metadata with their rules and their garbage, and its content store.
type testContainerd struct {
	t     *testing.T
	db    *metadata.DB
	ctx   context.Context //nolint:containedctx // with the namespace
	fails *failing        // nil: nothing fails
}

func newTestContainerd(t *testing.T) *testContainerd {
	t.Helper()
	dir := t.TempDir()
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	require.NoError(t, err)
	file, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	c := &testContainerd{t: t, db: metadata.NewDB(file, blobs, nil), ctx: namespaces.WithNamespace(t.Context(), "test")}
	require.NoError(t, c.db.Init(t.Context()))
	return c
}

// connect is a function for ExportOptions.
func (c *testContainerd) connect() (*containerdapi.Services, error) {
	s := &containerdapi.Services{
		Content: c.db.ContentStore(), Images: metadata.NewImageStore(c.db), Leases: metadata.NewLeaseManager(c.db),
		Close: func() error { return nil },
	}
	if c.fails != nil {
		s.Content, s.Images, s.Leases = failingContent{s.Content, c.fails}, failingImages{s.Images, c.fails}, failingLeases{s.Leases, c.fails}
	}
	return s, nil
}

// state lists everything, after garbage was collected.
func (c *testContainerd) state() (list []string) {
	c.t.Helper()
	_, err := c.db.GarbageCollect(c.ctx)
	require.NoError(c.t, err)
	require.NoError(c.t, c.db.ContentStore().Walk(c.ctx, func(info content.Info) error {
		list = append(list, "blob "+info.Digest.String())
		return nil
	}))
	uploads, err := c.db.ContentStore().ListStatuses(c.ctx)
	require.NoError(c.t, err)
	for _, upload := range uploads {
		list = append(list, "upload "+upload.Ref)
	}
	all, err := metadata.NewImageStore(c.db).List(c.ctx)
	require.NoError(c.t, err)
	for _, image := range all {
		list = append(list, "image "+image.Name+" "+image.Target.Digest.String())
	}
	held, err := metadata.NewLeaseManager(c.db).List(c.ctx)
	require.NoError(c.t, err)
	for _, lease := range held {
		list = append(list, "lease "+lease.ID)
	}
	slices.Sort(list)
	return list
}

func (c *testContainerd) promote(s *Store, p Promotion, name string, opts ExportOptions) (*Exported, error) {
	opts.Containerd = c.connect
	return s.ExportPromotion(c.t.Context(), p, mustParseDestination(c.t, "containerd://test/"+name), opts)
}

func (c *testContainerd) mustPromote(s *Store, p Promotion, name string, opts ExportOptions) *Exported {
	c.t.Helper()
	exported, err := c.promote(s, p, name, opts)
	require.NoError(c.t, err)
	return exported
}

// origin is the image of a container that would have been made from an image.
func (c *testContainerd) origin(of *Exported, base string) *Origin {
	c.t.Helper()
	chain := identity.ChainID(slices.Clone(of.Layers)).String()
	o, err := FindOrigin(c.ctx, c.db.ContentStore(), of.Name, of.Manifest, []string{"other", chain})
	require.NoError(c.t, err)
	o.Base = base
	return o
}

// TestPromoteToContainerd: the image is whole in containerd, with the blobs that are there already, and nothing else stays.
func TestPromoteToContainerd(t *testing.T) {
	s, c := newTestStore(t), newTestContainerd(t)
	app := webOfApp(t, s)
	exported := c.mustPromote(s, promotion("web"), "web:1", ExportOptions{Format: layertar.Gzip})
	assert.Equal(t, "docker.io/library/web:1", exported.Name)
	assert.Equal(t, app.DiffIDs(), exported.Layers[:2])
	assert.Len(t, c.state(), 6, "three layers, config, manifest and image; no lease")

	there, err := metadata.NewImageStore(c.db).Get(c.ctx, "docker.io/library/web:1")
	require.NoError(t, err)
	assert.Equal(t, exported.Manifest, there.Target.Digest)
	manifest, err := images.Manifest(c.ctx, c.db.ContentStore(), there.Target, nil)
	require.NoError(t, err)
	require.Len(t, manifest.Layers, 3)
	for i, layer := range manifest.Layers {
		info, err := c.db.ContentStore().Info(c.ctx, layer.Digest)
		require.NoError(t, err)
		assert.Equal(t, exported.Layers[i].String(), info.Labels[labels.LabelUncompressed])
	}
	data, err := content.ReadBlob(c.ctx, c.db.ContentStore(), manifest.Config)
	require.NoError(t, err)
	var config ocispec.Image
	require.NoError(t, json.Unmarshal(data, &config))
	assert.Equal(t, []string{"PATH=/bin"}, config.Config.Env)
	assert.Equal(t, exported.Layers, config.RootFS.DiffIDs)
	assert.Equal(t, "why", config.History[2].Comment)

	_, err = c.promote(s, promotion("between"), "web:1", ExportOptions{})
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	assert.Len(t, c.state(), 6)
	progress := &noting{}
	other := c.mustPromote(s, promotion("between"), "web:1", ExportOptions{Format: layertar.Zstd, Replace: true, Progress: progress})
	assert.Equal(t, []digest.Digest{exported.Manifest}, other.Replaced)
	assert.Equal(t, []string{"already there", "already there", "done"}, progress.notes)
	assert.Len(t, c.state(), 6, "the other image is garbage")
	again := c.mustPromote(s, promotion("between"), "web:2", ExportOptions{Format: layertar.Zstd})
	assert.Equal(t, other.Manifest, again.Manifest)

	_, err = s.ExportPromotion(t.Context(), promotion("web"), mustParseDestination(t, "containerd://test/web:3"), ExportOptions{})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
}

// TestPromotionWithoutLock: a process that can write nothing promotes. Another that can write to the same directory of records leaves its
// lease alone.
func TestPromotionWithoutLock(t *testing.T) {
	s, c := newTestStore(t), newTestContainerd(t)
	webOfApp(t, s)
	begin := func() *containerdWriter {
		w, err := s.newContainerdWriter(t.Context(), mustParseDestination(t, "containerd://test/web:1"), ExportOptions{Containerd: c.connect})
		require.NoError(t, err)
		return w
	}
	require.NoError(t, unix.Mount("tmpfs", s.dir, "tmpfs", unix.MS_RDONLY, ""))
	unmount := sync.OnceValue(func() error { return unix.Unmount(s.dir, 0) })
	t.Cleanup(func() { require.NoError(t, unmount()) })
	unlocked := begin()
	require.NoError(t, unmount())
	lease := "lease " + unlocked.lease.ID
	require.NoError(t, begin().close())
	assert.Equal(t, []string{lease}, c.state())
	require.NoError(t, unlocked.close())
	assert.Empty(t, c.state())

	c.fails = &failing{left: 3, killed: true} // after the lease
	_, err := c.promote(s, promotion("web"), "web:1", ExportOptions{})
	require.ErrorIs(t, err, errFailing)
	c.fails = nil
	assert.NotEmpty(t, c.state())
	require.NoError(t, begin().close())
	assert.Empty(t, c.state(), "the lease of a killed process")
}

// TestPromoteOrigin: a container's image is in containerd. Its promotion goes to each place, with the stored blobs as they are, also
// if containerd has discarded one.
func TestPromoteOrigin(t *testing.T) {
	s, c := newTestStore(t), newTestContainerd(t)
	app := webOfApp(t, s)
	base := c.mustPromote(s, promotion("between"), "base:1", ExportOptions{Format: layertar.Gzip})
	p := promotion("web")
	p.Origin = c.origin(base, "between")
	require.Len(t, p.Origin.Layers, 3)

	progress := &noting{}
	made := c.mustPromote(s, p, "web:1", ExportOptions{Format: layertar.Zstd, Progress: progress})
	assert.Equal(t, []string{"already there", "already there", "already there", "done"}, progress.notes)
	assert.Equal(t, base.Layers, made.Layers[:3])
	dir := t.TempDir()
	for _, to := range []string{"oci:" + dir + "/layout:web", "oci-archive:" + dir + "/oci.tar:web", "docker-archive:" + dir + "/docker.tar:web:1"} {
		ref := mustParseDestination(t, to)
		format := layertar.Zstd
		if ref.Transport == DockerArchive {
			format = layertar.Plain
		}
		exported, err := s.ExportPromotion(t.Context(), p, ref, ExportOptions{Format: format})
		require.NoError(t, err, to)
		assert.Equal(t, made.Image, exported.Image, to)
		if format != layertar.Plain {
			assert.Equal(t, made.Manifest, exported.Manifest, "the same blobs")
		}
	}
	into := newTestStore(t)
	imported, err := s.PromoteInto(t.Context(), into, p, ImportOptions{Name: "web:1"})
	require.NoError(t, err)
	assert.Equal(t, made.Image, imported.Image.ID())
	assert.Len(t, imported.Made, 4)
	again, err := s.PromoteInto(t.Context(), into, p, ImportOptions{Name: "web:1"})
	require.NoError(t, err)
	assert.Empty(t, again.Made)

	t.Run("stopped", func(t *testing.T) {
		empty := newTestStore(t)
		for count := range 4 {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := s.PromoteInto(ctx, empty, p, ImportOptions{Name: "web:1", Progress: &stopping{count: count, cancel: cancel}})
			require.ErrorIs(t, err, context.Canceled)
			assert.Empty(t, empty.layerNames(t))
		}
	})
	t.Run("discarded", func(t *testing.T) {
		require.NoError(t, c.db.ContentStore().Delete(c.ctx, p.Origin.Layers[1].Blob.Digest))
		p.Origin = c.origin(base, "between")
		lost := &p.Origin.Layers[1]
		require.Nil(t, lost.Open)
		lost.Volume, lost.Below = app.Top(), app.Layers()[0]
		require.NoError(t, os.Remove(s.splitFile(app.Top()))) // there is none for the volumes of containers
		without := c.mustPromote(s, p, "web:2", ExportOptions{Format: layertar.Gzip})
		imported, err := s.PromoteInto(t.Context(), into, p, ImportOptions{Name: "web:2"})
		require.NoError(t, err)
		assert.Equal(t, without.Image, imported.Image.ID())
	})
	t.Run("another image", func(t *testing.T) {
		for _, target := range []digest.Digest{made.Manifest, digest.FromString("none")} {
			_, err := FindOrigin(c.ctx, c.db.ContentStore(), "base:1", target, []string{identity.ChainID(slices.Clone(base.Layers)).String()})
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		}
	})
}

// TestPromoteToContainerdFails fails each request to containerd, which is done all the same or not. The rest fails too if the process was
// killed. Then the next promotion removes the remains.
func TestPromoteToContainerdFails(t *testing.T) {
	s, c := newTestStore(t), newTestContainerd(t)
	app := webOfApp(t, s)
	c.mustPromote(s, promotion("between"), "base:1", ExportOptions{})
	before := c.state()
	for _, killed := range []bool{false, true} {
		for at := 1; ; at++ {
			f := &failing{left: at, done: at%2 == 0, killed: killed}
			c.fails = f
			made, err := c.promote(s, promotion("web"), "web:1", ExportOptions{})
			c.fails = nil
			if err != nil { // else it has looked again, or all requests succeed
				require.ErrorIs(t, err, errFailing)
			} else {
				require.Equal(t, app.DiffIDs(), made.Layers[:2])
			}
			if err := metadata.NewImageStore(c.db).Delete(c.ctx, "docker.io/library/web:1"); err != nil {
				require.ErrorIs(t, err, errdefs.ErrNotFound)
			}
			if !f.cleanup {
				require.Equal(t, before, c.state(), "request %d", at)
			}
			c.mustPromote(s, promotion("between"), "base:1", ExportOptions{Replace: true})
			require.Equal(t, before, c.state(), "request %d", at)
			if f.left > 0 {
				require.Greater(t, at, 8)
				break
			}
		}
	}
}

// failing fails a request.
type failing struct {
	left    int  // requests until then
	done    bool // the request is done
	killed  bool // all later ones fail too, and are not done
	cleanup bool // a request that removes something has failed
}

var errFailing = errors.New("this request fails")

func (f *failing) request(do func() error) error {
	f.left--
	switch {
	case f.left > 0, f.left < 0 && !f.killed:
		return do()
	case f.left == 0 && f.done:
		return errors.Join(errFailing, do())
	}
	return errFailing
}

// remove is request for a removal.
func (f *failing) remove(do func() error) error {
	err := f.request(do)
	f.cleanup = f.cleanup || errors.Is(err, errFailing)
	return err
}

type failingContent struct {
	content.Store
	f *failing
}

func (c failingContent) Writer(ctx context.Context, opts ...content.WriterOpt) (w content.Writer, err error) {
	err = c.f.request(func() error { w, err = c.Store.Writer(ctx, opts...); return err })
	if err != nil {
		if w != nil {
			err = errors.Join(err, w.Close())
		}
		return nil, err
	}
	return failingWriter{w, c.f}, nil
}

func (c failingContent) Abort(ctx context.Context, ref string) error {
	return c.f.remove(func() error { return c.Store.Abort(ctx, ref) })
}

type failingWriter struct {
	content.Writer
	f *failing
}

func (w failingWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	return w.f.request(func() error { return w.Writer.Commit(ctx, size, expected, opts...) })
}

type failingImages struct {
	images.Store
	f *failing
}

func (i failingImages) Create(ctx context.Context, image images.Image) (made images.Image, err error) {
	err = i.f.request(func() error { made, err = i.Store.Create(ctx, image); return err })
	return made, err
}

type failingLeases struct {
	leases.Manager
	f *failing
}

func (l failingLeases) Create(ctx context.Context, opts ...leases.Opt) (lease leases.Lease, err error) {
	err = l.f.request(func() error { lease, err = l.Manager.Create(ctx, opts...); return err })
	return lease, err
}

func (l failingLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	return l.f.remove(func() error { return l.Manager.Delete(ctx, lease, opts...) })
}

func (l failingLeases) AddResource(ctx context.Context, lease leases.Lease, resource leases.Resource) error {
	return l.f.request(func() error { return l.Manager.AddResource(ctx, lease, resource) })
}
