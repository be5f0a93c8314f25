package dockerroot

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate"
)

// testRoot is a root as Docker makes it. Each layer holds a file with the layer's ID.
type testRoot struct {
	*testroot.Root
	t testing.TB
}

func newTestRoot(t testing.TB, dir, driver string) *testRoot {
	r := &testRoot{testroot.New(t, dir, driver), t}
	if driver == "btrfs" { // without subvolumes, which most tests do not need
		r.Content = func(id, _ string) { r.Write(r.TreeName(id)+"/file", id) }
	}
	return r
}

// hexOf is an ID that follows from a text.
func hexOf(text string) string { return digest.FromString(text).Encoded() }

func (r *testRoot) remove(name string) { require.NoError(r.t, os.RemoveAll(r.Path(name))) }

func (r *testRoot) make(id, parent string) {
	r.MakeContent(id, parent, testroot.Entry{Name: "file", Data: id})
}

// layer makes a layer of images. Its tar is none, so that the tests that compare nothing are fast.
func (r *testRoot) layer(name string, parent *testroot.Layer) *testroot.Layer {
	l := &testroot.Layer{ID: hexOf("cache " + name), Diff: digest.FromString("diff " + name), Parent: parent}
	if strings.HasPrefix(name, "b") {
		l.ID = l.ID[:24] + "z" // as BuildKit has them
	}
	l.Chain = l.Diff
	below := ""
	if parent != nil {
		l.Chain = digest.FromString(string(parent.Chain) + " " + string(l.Diff))
		below = parent.ID
	}
	r.AddLayer(l, len(name), partsOf(name))
	r.make(l.ID, below)
	return l
}

func partsOf(name string) string { return `{"type":2,"payload":"` + name + `","position":0}` + "\n" }

// container makes a container. more overrides parts of its configuration.
func (r *testRoot) container(name string, image digest.Digest, top *testroot.Layer, init bool, more map[string]any, host any) testroot.Container {
	c := testroot.Container{ID: hexOf("container " + name), Name: name, Image: image, Top: top, Mount: hexOf("mount " + name), More: more, Host: host}
	parent := ""
	if top != nil {
		parent = top.ID
	}
	if init {
		c.Init = c.Mount + "-init"
		r.make(c.Init, parent)
		parent = c.Init
	}
	r.make(c.Mount, parent)
	r.AddContainer(c)
	return c
}

// sample is a root with a bit of everything.
type sample struct {
	*testRoot
	a, b, c           *testroot.Layer
	base, middle, top digest.Digest // images of the layers a, a b, and a b c
	web, old          testroot.Container
}

const manifest = "sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// fill makes three images that share layers. The first has a name with a digest, the second has two tags, the third has no
// name. One of the two containers has a layer between the image and its own.
func fill(r *testRoot) *sample {
	s := &sample{testRoot: r}
	s.a = r.layer("a", nil)
	s.b = r.layer("b", s.a)
	s.c = r.layer("c", s.b)
	s.base = r.AddImage(s.a, "base", "debian:12", "debian@"+manifest)
	s.middle = r.AddImage(s.b, "middle", "localhost:5000/team/app:1", "localhost:5000/team/app:latest")
	s.top = r.AddImage(s.c, "top")
	s.web = r.container("web", s.middle, s.b, true, map[string]any{"State": map[string]any{"Running": true}}, map[string]any{"StorageOpt": map[string]string{"size": "10G"}})
	s.old = r.container("old.one", s.top, s.c, false, nil, nil)
	return s
}

// inventory is the inventory of the sample.
func (s *sample) inventory() *migrate.Inventory {
	config := func(id digest.Digest) []byte {
		data, err := os.ReadFile(s.Path(s.ConfigFile(id)))
		require.NoError(s.t, err)
		return data
	}
	inv := &migrate.Inventory{
		Program: "docker",
		Driver:  s.Driver,
		Images: []migrate.Image{
			{
				ID: s.base, Config: config(s.base), Layers: []string{s.a.ID},
				Names: []string{"docker.io/library/debian:12"}, Digests: []string{"docker.io/library/debian@" + manifest},
			},
			{
				ID: s.middle, Config: config(s.middle), Layers: []string{s.a.ID, s.b.ID},
				Names: []string{"localhost:5000/team/app:1", "localhost:5000/team/app:latest"},
			},
			{ID: s.top, Config: config(s.top), Layers: []string{s.a.ID, s.b.ID, s.c.ID}},
		},
		Containers: []migrate.Container{
			{ID: s.web.ID, Name: "web", Image: s.middle, Layer: s.web.Mount, Running: true, Dir: "containers/" + s.web.ID},
			{ID: s.old.ID, Name: "old.one", Image: s.top, Layer: s.old.Mount, Dir: "containers/" + s.old.ID},
		},
	}
	for _, l := range []*testroot.Layer{s.a, s.b, s.c} {
		parent := ""
		if l.Parent != nil {
			parent = l.Parent.ID
		}
		inv.Layers = append(inv.Layers, migrate.Layer{ID: l.ID, Parent: parent, Kind: migrate.ImageLayer, ChainID: l.Chain, DiffID: l.Diff, Size: 1})
	}
	web := []migrate.Layer{
		{ID: s.web.Init, Parent: s.b.ID, Kind: migrate.InitLayer, Size: -1},
		{ID: s.web.Mount, Parent: s.web.Init, Kind: migrate.ContainerLayer, Size: -1, Limit: 10 << 30},
	}
	old := []migrate.Layer{{ID: s.old.Mount, Parent: s.c.ID, Kind: migrate.ContainerLayer, Size: -1}}
	if s.web.ID < s.old.ID {
		inv.Layers = append(append(inv.Layers, web...), old...)
	} else {
		inv.Layers = append(append(inv.Layers, old...), web...)
	}
	slices.SortFunc(inv.Images, func(a, b migrate.Image) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(inv.Containers, func(a, b migrate.Container) int { return cmp.Compare(a.ID, b.ID) })
	return inv
}

func fdName(f *os.File) string { return strconv.Itoa(int(f.Fd())) }
