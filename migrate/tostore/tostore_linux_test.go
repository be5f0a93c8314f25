package tostore

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
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
	"github.com/vbatts/tar-split/tar/storage"
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
	return newPlaceOf(t, testroot.NewSample(t, filepath.Join(mnt, "docker"), driver), mnt)
}

// newPlaceOf makes a store on the filesystem at mnt.
func newPlaceOf(t *testing.T, sample *testroot.Sample, mnt string) *place {
	t.Helper()
	p := &place{t: t, sample: sample, store: filepath.Join(mnt, "store")}
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
		Driver: p.driver, Images: filepath.Join(p.store, "images"), Home: filepath.Join(p.store, "btrfs"), State: migrate.TargetState(p.state()), Origin: "docker", Trust: p.trust,
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

// TestPoisoned: nothing comes under the chain ID of a layer that is not in the layer's tar, though the bytes of all files
// are right.
func TestPoisoned(t *testing.T) {
	for name, poison := range map[string]func(t *testing.T, tree string) error{
		"added file": func(_ *testing.T, tree string) error {
			return os.WriteFile(filepath.Join(tree, "etc/cron"), []byte("x"), 0o644)
		},
		"added directory": func(_ *testing.T, tree string) error { return os.Mkdir(filepath.Join(tree, "opt"), 0o755) },
		"added link":      func(_ *testing.T, tree string) error { return os.Symlink("/tmp", filepath.Join(tree, "usr/lib")) },
		"setuid": func(_ *testing.T, tree string) error {
			return os.Chmod(filepath.Join(tree, "usr/app"), 0o640|os.ModeSetuid)
		},
		"directory's mode": func(_ *testing.T, tree string) error { return os.Chmod(filepath.Join(tree, "etc"), 0o777) },
		"root's mode":      func(_ *testing.T, tree string) error { return os.Chmod(tree, 0o777) },
		"owner":            func(_ *testing.T, tree string) error { return os.Chown(filepath.Join(tree, "usr/app"), 1000, 0) },
		"attribute": func(_ *testing.T, tree string) error {
			return unix.Setxattr(filepath.Join(tree, "usr/app"), "user.x", []byte("y"), 0)
		},
		"hard link": func(t *testing.T, tree string) error {
			require.NoError(t, os.Remove(filepath.Join(tree, "usr/app")))
			return os.Link(filepath.Join(tree, "etc/app"), filepath.Join(tree, "usr/app"))
		},
		"other kind": func(t *testing.T, tree string) error {
			require.NoError(t, os.Rename(filepath.Join(tree, "usr/app"), filepath.Join(tree, "usr/real")))
			return os.Symlink("real", filepath.Join(tree, "usr/app"))
		},
		"removal": func(t *testing.T, tree string) error {
			log := filepath.Join(tree, "var/log")
			if err := os.Remove(log); err == nil {
				return nil // a whole tree
			}
			require.NoError(t, os.Mkdir(filepath.Dir(log), 0o755))
			return unix.Mknod(log, unix.S_IFCHR, 0)
		},
		"change of the layer below": func(t *testing.T, tree string) error {
			tool := filepath.Join(tree, "var/log")
			require.NoError(t, os.MkdirAll(filepath.Dir(tool), 0o755))
			return os.WriteFile(tool, []byte("LOG"), 0o640)
		},
	} {
		for _, driver := range []string{"overlay2", "btrfs", "vfs"} {
			t.Run(name+" "+driver, func(t *testing.T) {
				p := newPlace(t, driver)
				require.NoError(t, poison(t, p.sample.Tree(p.sample.App.ID)))
				var partial *migrate.PartialError
				require.ErrorAs(t, p.run(), &partial)
				require.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrDataLoss)
				assert.NotContains(t, p.volumes(), p.sample.App.Chain.Encoded())
				assert.Contains(t, p.volumes(), p.sample.Base.Chain.Encoded())
			})
		}
	}
}

// TestPartsOfAnother: parts that hold all of the tar say nothing about the tree.
func TestPartsOfAnother(t *testing.T) {
	p := newPlace(t, "overlay2")
	s := p.sample
	parts, err := os.Open(filepath.Join(s.Dir, s.LayerDir(s.App), "tar-split.json.gz"))
	require.NoError(t, err)
	z, err := gzip.NewReader(parts)
	require.NoError(t, err)
	var whole bytes.Buffer
	files := storage.NewPathFileGetter(s.Tree(s.App.ID))
	require.NoError(t, image.JoinParts(t.Context(), &whole, files, z))
	require.NoError(t, parts.Close())
	var made bytes.Buffer
	zw := gzip.NewWriter(&made)
	require.NoError(t, json.NewEncoder(zw).Encode(storage.Entry{Type: storage.SegmentType, Payload: whole.Bytes()}))
	require.NoError(t, zw.Close())
	require.NoError(t, os.WriteFile(parts.Name(), made.Bytes(), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.Tree(s.App.ID), "etc/app"), []byte("poison"), 0o640))
	var partial *migrate.PartialError
	require.ErrorAs(t, p.run(), &partial)
	assert.ErrorContains(t, partial.Problems[0].Err, "content")
	assert.NotContains(t, p.volumes(), s.App.Chain.Encoded())
}

// TestWithoutParts: without the parts of the tar, the tree has to make a tar of the same digest.
func TestWithoutParts(t *testing.T) {
	p := newPlace(t, "overlay2")
	require.NoError(t, os.Remove(filepath.Join(p.sample.Dir, p.sample.LayerDir(p.sample.App), "tar-split.json.gz")))
	var partial *migrate.PartialError
	require.ErrorAs(t, p.run(), &partial)
	require.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrDataLoss)
	assert.NotContains(t, p.volumes(), p.sample.App.Chain.Encoded())
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
	finish := func(m *migrate.Migration) error { _, err := m.Finish(t.Context(), false); return err }
	require.NoError(t, p.migrate(finish))
	before := p.volumes()
	p.sample = first
	require.ErrorIs(t, p.run(), errdefs.ErrAlreadyExists)
	assert.Equal(t, before, p.volumes())
}

// TestUndoKeepsImageNames: an image's name that was there before the run stays, also if the run was cut off.
func TestUndoKeepsImageNames(t *testing.T) {
	for _, cutOff := range []bool{false, true} {
		p := newPlace(t, "overlay2")
		require.NoError(t, p.run())
		require.NoError(t, p.migrate(func(m *migrate.Migration) error {
			return os.RemoveAll(p.state()) // the names are now the store's own
		}))
		for _, name := range []string{"debian:12", "localhost:5000/team/web:1"} {
			_, err := p.images.Get(name)
			require.NoError(t, err)
		}
		require.NoError(t, os.Remove(filepath.Join(p.store, "images/records/localhost:5000%2Fteam%2Fweb:latest.json")))
		before := p.imageNames()
		for _, layer := range []string{"shop", "shop-init", "blog", "blog-init"} {
			require.NoError(t, p.driver.Remove(layer))
		}
		require.NoError(t, p.run())
		assert.Contains(t, p.imageNames(), "localhost:5000/team/web:latest")
		if cutOff {
			cutJournal(t, p, `{"step":"done","item":{"image":`)
		}
		var partial *migrate.PartialError
		if err := p.undo(); err != nil {
			require.ErrorAs(t, err, &partial)
		}
		assert.Equal(t, before, p.imageNames())
	}
}

// cutJournal cuts the journal off before the first line that begins so.
func cutJournal(t *testing.T, p *place, line string) {
	t.Helper()
	journal := filepath.Join(p.state(), "journal.json")
	data, err := os.ReadFile(journal)
	require.NoError(t, err)
	at := strings.Index(string(data), line)
	require.Positive(t, at)
	require.NoError(t, os.WriteFile(journal, data[:at], 0o600))
}

// TestOthersVolume: after the intent of a run that was cut off, somebody makes a volume of that name. It is not the
// migration's.
func TestOthersVolume(t *testing.T) {
	for _, then := range []string{"run", "undo"} {
		t.Run(then, func(t *testing.T) {
			p := newPlace(t, "overlay2")
			require.NoError(t, p.run())
			cutJournal(t, p, `{"step":"done","item":{"layer":{"ID":"`+p.sample.ShopLayer+`"`)
			require.NoError(t, p.driver.Remove("shop"))
			require.NoError(t, p.driver.Create("shop", "", nil))
			if then == "run" {
				require.NoError(t, p.run())
				assert.Contains(t, p.volumes(), "shop-"+p.sample.Shop[:12])
				assert.Empty(t, p.read("shop", "etc/shop"))
				require.NoError(t, p.verify())
			}
			if err := p.undo(); err != nil {
				var partial *migrate.PartialError
				require.ErrorAs(t, err, &partial)
			}
			assert.Contains(t, p.volumes(), "shop")
			assert.NotContains(t, p.volumes(), "shop-"+p.sample.Shop[:12])
		})
	}
}

// TestRaceForName: a volume that gets the name of a layer while the layer is made stays, and the next run takes another.
func TestRaceForName(t *testing.T) {
	p := newPlace(t, "overlay2")
	require.NoError(t, p.migrate(func(m *migrate.Migration) error {
		_, err := m.Run(t.Context(), racing{t, p})
		var partial *migrate.PartialError
		require.ErrorAs(t, err, &partial)
		assert.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrAlreadyExists)
		return nil
	}))
	assert.Empty(t, p.read("shop", "etc/shop"))
	require.NoError(t, p.run())
	assert.Equal(t, "shop", p.read("shop-"+p.sample.Shop[:12], "etc/shop"))
	require.NoError(t, p.undo())
	assert.Equal(t, []string{"shop"}, p.volumes())
}

// racing is the progress of a run, which makes a volume before its first layer.
type racing struct {
	t *testing.T
	p *place
}

func (r racing) Start(what string, _ int) migrate.Task {
	if what == "layers" {
		require.NoError(r.t, r.p.driver.Create("shop", "", nil))
	}
	return r
}
func (racing) Next(string) {}
func (racing) End(string)  {}

// TestNamesFile: a part of a line at the end of the file is ignored, and damage is not.
func TestNamesFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	n, err := openNames(dir)
	require.NoError(t, err)
	require.NoError(t, n.keepAs(made{Key: "a", Name: "one"}))
	require.NoError(t, n.keepAs(made{Key: "b", Name: "two", Volume: "v"}))
	require.NoError(t, n.remove("a"))
	require.NoError(t, n.close())
	data, err := os.ReadFile(n.file)
	require.NoError(t, err)
	assert.Equal(t, 3, strings.Count(string(data), "\n"))
	require.NoError(t, os.WriteFile(n.file, append(data, `{"key":"c","na`...), 0o600))
	n, err = openNames(dir)
	require.NoError(t, err)
	assert.Equal(t, map[string]made{"b": {Key: "b", Name: "two", Volume: "v"}}, n.saved)
	require.NoError(t, n.keepAs(made{Key: "d", Name: "four"}))
	require.NoError(t, n.close())
	n, err = openNames(dir)
	require.NoError(t, err)
	assert.Len(t, n.saved, 2)
	for _, bad := range []string{"x\n", `{"key":"a","name":"../x"}` + "\n"} {
		require.NoError(t, os.WriteFile(n.file, []byte(bad), 0o600))
		_, err = openNames(dir)
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
	}
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
