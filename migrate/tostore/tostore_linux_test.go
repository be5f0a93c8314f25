package tostore

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
)

// place is a store beside a root.
type place struct {
	t      *testing.T
	sample *testroot.Sample
	store  string
	driver *cowdriver.Driver
	images *image.Store
	trust  bool
}

func newPlace(t *testing.T, driver string) *place {
	t.Helper()
	mnt := testfs.Btrfs(t)
	p := &place{t: t, sample: testroot.NewSample(t, filepath.Join(mnt, "docker"), driver), store: filepath.Join(mnt, "store")}
	d, err := btrfs.Init(filepath.Join(p.store, "btrfs"), nil, user.IdentityMapping{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
	p.driver = d.(*cowdriver.Driver)
	p.images = image.NewStore(filepath.Join(p.store, "images"), p.driver, nil)
	return p
}

func (p *place) target() *Target {
	p.t.Helper()
	target, err := New(Options{
		Driver: p.driver, Images: p.images, Home: filepath.Join(p.store, "btrfs"), State: migrate.TargetState(p.state()), Origin: "docker", Trust: p.trust,
	})
	require.NoError(p.t, err)
	return target
}

func (p *place) state() string { return filepath.Join(p.store, "migration") }

// migrate calls do with a migration of its own.
func (p *place) migrate(do func(*migrate.Migration) error) error {
	p.t.Helper()
	source, err := dockerroot.Open(p.t.Context(), dockerroot.Options{Dir: p.sample.Dir})
	require.NoError(p.t, err)
	target := p.target()
	err = do(migrate.New(source, target, migrate.Options{Source: p.sample.Dir, Target: p.store, State: p.state(), Trust: p.trust}))
	require.NoError(p.t, errors.Join(target.Close(), source.Close()))
	return err
}

func (p *place) run() error {
	return p.migrate(func(m *migrate.Migration) error { _, err := m.Run(p.t.Context(), nil); return err })
}

func (p *place) verify() error {
	return p.migrate(func(m *migrate.Migration) error { _, err := m.Verify(p.t.Context(), nil); return err })
}

func (p *place) undo() error {
	return p.migrate(func(m *migrate.Migration) error { _, err := m.Undo(p.t.Context(), nil); return err })
}

func (p *place) volumes() []string {
	p.t.Helper()
	var names []string
	for v, err := range p.driver.Backend().Volumes(p.t.Context()) {
		require.NoError(p.t, err)
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return names
}

func (p *place) imageNames() []string {
	p.t.Helper()
	images, err := p.images.List()
	require.NoError(p.t, err)
	var names []string
	for _, i := range images {
		names = append(names, i.Name)
	}
	return names
}

// read reads a file of a layer, "" if there is none.
func (p *place) read(layer, name string) string {
	p.t.Helper()
	dir, err := p.driver.Get(layer, "")
	require.NoError(p.t, err)
	defer func() { require.NoError(p.t, p.driver.Put(layer)) }()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	require.NoError(p.t, err)
	return string(data)
}

func (p *place) all() []string {
	s := p.sample
	all := []string{s.Base.Chain.Encoded(), s.App.Chain.Encoded(), s.Bare.Chain.Encoded(), "shop", "shop-init", "blog", "blog-init"}
	slices.Sort(all)
	return all
}

// TestMigrate brings a root of each driver to a store, looks at it, and takes it back.
func TestMigrate(t *testing.T) {
	for _, driver := range []string{"overlay2", "vfs", "btrfs"} {
		t.Run(driver, func(t *testing.T) {
			p := newPlace(t, driver)
			s := p.sample
			require.NoError(t, p.run())
			assert.Equal(t, p.all(), p.volumes())
			names := []string{"debian:12", "localhost:5000/team/web:1", "localhost:5000/team/web:latest", "untagged:" + s.NoName.Encoded()[:12]}
			assert.Equal(t, names, p.imageNames())
			web, err := p.images.Get("localhost:5000/team/web:1")
			require.NoError(t, err)
			assert.Equal(t, s.Web, web.ID())
			assert.Equal(t, "docker", web.Origin)
			assert.Equal(t, "shop", p.read("shop", "etc/shop"))
			assert.Empty(t, p.read("shop", "var/log"))
			assert.Equal(t, "root:x:0:0", p.read("shop", "etc/passwd"))
			assert.Equal(t, "changed", p.read("blog", "usr/app"))
			assert.Empty(t, p.read("blog", "etc/passwd"))
			v, err := p.driver.Backend().Stat(t.Context(), "blog")
			require.NoError(t, err)
			assert.Equal(t, "blog-init", v.Parent)

			// The images come out as they came into Docker.
			for _, name := range p.imageNames() {
				ref, err := image.ParseDestination("oci:" + filepath.Join(t.TempDir(), "out"))
				require.NoError(t, err)
				_, err = p.images.Export(t.Context(), name, ref, image.ExportOptions{Exact: true})
				require.NoError(t, err, name)
			}
			problems, err := p.images.Check(t.Context())
			require.NoError(t, err)
			assert.Empty(t, problems)

			require.NoError(t, p.verify())
			require.NoError(t, p.run(), "again")
			assert.Equal(t, p.all(), p.volumes())
			require.NoError(t, p.undo())
			assert.Empty(t, p.volumes())
			assert.Empty(t, p.imageNames())
			assert.NoDirExists(t, p.state())
			left, err := os.ReadDir(filepath.Join(p.store, "images/tarsplit"))
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

// TestVerify finds changes since the run, on either side.
func TestVerify(t *testing.T) {
	p := newPlace(t, "overlay2")
	require.NoError(t, p.run())
	var partial *migrate.PartialError
	dir, err := p.driver.Get("shop", "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "etc/shop"), []byte("POHS"), 0o640))
	require.NoError(t, p.driver.Put("shop"))
	require.ErrorAs(t, p.verify(), &partial)
	require.Len(t, partial.Problems, 1)
	assert.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrDataLoss)
	assert.ErrorContains(t, partial.Problems[0].Err, "/etc/shop")
	require.NoError(t, os.Remove(filepath.Join(p.store, "images/records/debian:12.json")))
	require.ErrorAs(t, p.verify(), &partial)
	assert.Len(t, partial.Problems, 2)
}

// TestBrokenLayer: content that does not have the chain ID gets no name of an image's layer. Only things that are made
// from it stay away too.
func TestBrokenLayer(t *testing.T) {
	for name, breaks := range map[string]func(t *testing.T, s *testroot.Sample){
		"changed file": func(t *testing.T, s *testroot.Sample) {
			require.NoError(t, os.WriteFile(filepath.Join(s.Tree(s.App.ID), "etc/app"), []byte("evil!!"), 0o640))
		},
		"lost file": func(t *testing.T, s *testroot.Sample) {
			require.NoError(t, os.Remove(filepath.Join(s.Tree(s.App.ID), "etc/app")))
		},
		"damaged parts": func(t *testing.T, s *testroot.Sample) {
			path := filepath.Join(s.Dir, s.LayerDir(s.App), "tar-split.json.gz")
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, data[:len(data)/2], 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, "overlay2")
			breaks(t, p.sample)
			var partial *migrate.PartialError
			require.ErrorAs(t, p.run(), &partial)
			var kinds []string
			for _, problem := range partial.Problems {
				kinds = append(kinds, problem.What)
			}
			slices.Sort(kinds)
			assert.Equal(t, []string{"container", "image", "image", "layer", "layer", "layer", "layer"}, kinds)
			want := []string{p.sample.Base.Chain.Encoded(), "shop", "shop-init"}
			slices.Sort(want)
			assert.Equal(t, want, p.volumes())
			assert.Equal(t, []string{"debian:12"}, p.imageNames())
			require.NoError(t, p.undo())
			assert.Empty(t, p.volumes())
		})
	}
}

// TestNamesThatAreTaken: a container gets another name, and an image's name is a reason to refuse.
func TestNamesThatAreTaken(t *testing.T) {
	p := newPlace(t, "overlay2")
	require.NoError(t, p.driver.Create("shop", "", nil))
	require.NoError(t, p.run())
	assert.Contains(t, p.volumes(), "shop-"+p.sample.Shop[:12])
	assert.Contains(t, p.volumes(), "shop-"+p.sample.Shop[:12]+"-init")
	require.NoError(t, p.run(), "names stay")
	require.NoError(t, p.undo())
	assert.Equal(t, []string{"shop"}, p.volumes())

	other := testroot.New(t, filepath.Join(filepath.Dir(p.store), "other"), "overlay2")
	other.Image(other.Layer(nil, testroot.Entry{Name: "other", Data: "x"}), "debian:12")
	first := p.sample
	p.sample = &testroot.Sample{Root: other}
	require.NoError(t, p.run())
	finish := func(m *migrate.Migration) error { return m.Finish(t.Context(), false) }
	require.NoError(t, p.migrate(finish))
	before := p.volumes()
	p.sample = first
	require.ErrorIs(t, p.run(), errdefs.ErrAlreadyExists)
	assert.Equal(t, before, p.volumes())
}

// TestSharedWithImports: a layer that the store has already is used, and stays. A layer that others came to need stays too.
func TestSharedWithImports(t *testing.T) {
	p := newPlace(t, "overlay2")
	require.NoError(t, p.run())
	require.NoError(t, p.driver.Create("mine", "shop", nil))
	var partial *migrate.PartialError
	require.ErrorAs(t, p.undo(), &partial)
	assert.Len(t, partial.Problems, 3, "the layer, and those below it")
	assert.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrFailedPrecondition)
	want := []string{p.sample.Base.Chain.Encoded(), "mine", "shop", "shop-init"}
	slices.Sort(want)
	assert.Equal(t, want, p.volumes())
	require.NoError(t, p.run(), "back again")
	require.NoError(t, p.driver.Remove("mine"))
	require.NoError(t, p.undo())
	assert.Empty(t, p.volumes())
}

// TestCutOff: remains of a run that ended in the middle of a layer go, and the next one makes the layer.
func TestCutOff(t *testing.T) {
	p := newPlace(t, "overlay2")
	ctx, cancel := context.WithCancel(t.Context())
	target := p.target()
	content, err := os.Open(p.sample.Tree(p.sample.Base.ID))
	require.NoError(t, err)
	defer content.Close()
	takeover, err := target.open(ctx)
	require.NoError(t, err)
	partial := takeover.Partial(p.sample.Base.Chain.Encoded())
	require.NoError(t, p.driver.Create(partial, "", nil))
	require.NoError(t, takeover.KeepParts(p.sample.Base.Chain.Encoded(), strings.NewReader("{}\n")))
	cancel()
	require.NoError(t, target.Close())
	assert.Equal(t, []string{partial}, p.volumes())
	require.NoError(t, p.run())
	assert.Equal(t, p.all(), p.volumes())
	require.NoError(t, p.verify())
}

// TestNoSharedData: on one btrfs no data of files is written.
func TestNoSharedData(t *testing.T) {
	p := newPlace(t, "overlay2")
	big := filepath.Join(p.sample.Tree(p.sample.ShopLayer), "big")
	require.NoError(t, os.WriteFile(big, make([]byte, 0), 0o600))
	f, err := os.OpenFile(big, os.O_WRONLY, 0)
	require.NoError(t, err)
	random, err := os.Open("/dev/urandom")
	require.NoError(t, err)
	_, err = io.CopyN(f, random, 64<<20)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Sync(), f.Close(), random.Close()))
	used := func() uint64 {
		unix.Sync()
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(p.store, &st))
		return (st.Blocks - st.Bfree) * uint64(st.Bsize)
	}
	before := used()
	require.NoError(t, p.run())
	assert.Less(t, used()-before, uint64(8<<20))
	assert.Len(t, p.read("shop", "big"), 64<<20)
}

func TestLongLine(t *testing.T) {
	p := newPlace(t, "overlay2")
	target := p.target()
	defer target.Close()
	takeover, err := target.open(t.Context())
	require.NoError(t, err)
	err = takeover.KeepParts(strings.Repeat("0", 64), io.LimitReader(endless{}, 1<<30))
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.ErrorIs(t, takeover.KeepParts("../x", strings.NewReader("")), errdefs.ErrInvalidArgument)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '['
	}
	return len(p), nil
}
