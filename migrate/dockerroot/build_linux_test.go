package dockerroot

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/migrate"
)

// testRoot is a root as Docker makes it.
type testRoot struct {
	t      testing.TB
	dir    string
	driver string
	names  map[string]map[string]string
	parent map[string]string // of layers in the driver
	// content makes the empty content of a layer, where that takes more than directories and files.
	content func(id, parent string)
}

type testLayer struct {
	id          string
	chain, diff digest.Digest
	parent      *testLayer
}

func newTestRoot(t testing.TB, dir, driver string) *testRoot {
	r := &testRoot{t: t, dir: dir, driver: driver, names: map[string]map[string]string{}, parent: map[string]string{}}
	for _, name := range []string{"containers", "volumes", "image/" + driver + "/layerdb/tmp/write-set-1", "image/" + driver + "/layerdb/mounts", "image/" + driver + "/distribution/v2metadata-by-diffid/sha256"} {
		r.mkdir(name)
	}
	return r
}

// hexOf is an ID that follows from a text.
func hexOf(text string) string { return digest.FromString(text).Encoded() }

func (r *testRoot) path(name string) string { return filepath.Join(r.dir, name) }

func (r *testRoot) mkdir(name string) { require.NoError(r.t, os.MkdirAll(r.path(name), 0o755)) }

func (r *testRoot) write(name, text string) {
	r.mkdir(filepath.Dir(name))
	require.NoError(r.t, os.WriteFile(r.path(name), []byte(text), 0o644))
}

func (r *testRoot) writeJSON(name string, value any) []byte {
	data, err := json.Marshal(value)
	require.NoError(r.t, err)
	r.write(name, string(data))
	return data
}

func (r *testRoot) remove(name string) { require.NoError(r.t, os.RemoveAll(r.path(name))) }

func (r *testRoot) layerDir(l *testLayer) string {
	return "image/" + r.driver + "/layerdb/sha256/" + l.chain.Encoded()
}

func (r *testRoot) mountDir(container string) string {
	return "image/" + r.driver + "/layerdb/mounts/" + container
}

func (r *testRoot) configFile(image digest.Digest) string {
	return "image/" + r.driver + "/imagedb/content/sha256/" + image.Encoded()
}

// layer makes a layer of images.
func (r *testRoot) layer(name string, parent *testLayer) *testLayer {
	id := hexOf("cache " + name)
	if strings.HasPrefix(name, "b") {
		id = id[:24] + "z" // as BuildKit has them
	}
	l := &testLayer{id: id, diff: digest.FromString("diff " + name), parent: parent}
	l.chain = l.diff
	below := ""
	if parent != nil {
		l.chain = digest.FromString(string(parent.chain) + " " + string(l.diff))
		below = parent.id
		r.write(r.layerDir(l)+"/parent", string(parent.chain))
	}
	dir := r.layerDir(l)
	r.write(dir+"/cache-id", l.id)
	r.write(dir+"/diff", string(l.diff))
	r.write(dir+"/size", strconv.Itoa(len(name)))
	r.write(dir+"/"+partsFile, zipped(r.t, partsOf(name)))
	r.make(l.id, below)
	return l
}

func partsOf(name string) string { return `{"type":2,"payload":"` + name + `","position":0}` + "\n" }

func zipped(t testing.TB, text string) string {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return out.String()
}

// tree is the directory with the content of a layer, which holds a file with the layer's ID.
func (r *testRoot) tree(id string) string {
	switch r.driver {
	case "btrfs":
		return "btrfs/subvolumes/" + id
	case "vfs":
		return "vfs/dir/" + id
	case "aufs":
		return "aufs/diff/" + id
	}
	return r.driver + "/" + id + "/diff"
}

// make makes the content of a layer.
func (r *testRoot) make(id, parent string) {
	r.parent[id] = parent
	if r.content != nil {
		r.content(id, parent)
		return
	}
	r.write(r.tree(id)+"/file", id)
	switch r.driver {
	case "overlay2", "fuse-overlayfs":
		r.mkdir(r.driver + "/l")
		require.NoError(r.t, os.Symlink("../"+id+"/diff", r.path(r.driver+"/l/"+linkOf(id))))
		r.write(r.driver+"/"+id+"/link", linkOf(id))
		if parent == "" {
			return
		}
		r.mkdir(r.driver + "/" + id + "/work")
		r.write(r.driver+"/"+parent+"/committed", "")
		var lower []string
		for ; parent != ""; parent = r.parent[parent] {
			lower = append(lower, "l/"+linkOf(parent))
		}
		r.write(r.driver+"/"+id+"/lower", strings.Join(lower, ":"))
	case "aufs":
		text := ""
		for ; parent != ""; parent = r.parent[parent] {
			text += parent + "\n"
		}
		r.write("aufs/layers/"+id, text)
		r.mkdir("aufs/mnt/" + id)
	}
}

// linkOf is the short name of a layer of overlay2.
func linkOf(id string) string { return strings.ToUpper(hexOf("link " + id)[:26]) }

// image makes an image with some names, whose last layer is top.
func (r *testRoot) image(top *testLayer, comment string, names ...string) digest.Digest {
	var diffs []digest.Digest
	for l := top; l != nil; l = l.parent {
		diffs = append([]digest.Digest{l.diff}, diffs...)
	}
	config := map[string]any{
		"architecture": "amd64", "os": "linux", "comment": comment,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}
	data, err := json.Marshal(config)
	require.NoError(r.t, err)
	id := digest.FromBytes(data)
	r.write(r.configFile(id), string(data))
	r.write("image/"+r.driver+"/imagedb/metadata/sha256/"+id.Encoded()+"/lastUpdated", "2021-01-01T00:00:00Z")
	for _, name := range names {
		r.name(name, string(id))
	}
	return id
}

// name gives a name to an image.
func (r *testRoot) name(name, image string) {
	repository := name[:strings.LastIndexAny(name, ":@")]
	repository = strings.TrimSuffix(repository, "@sha256")
	if r.names[repository] == nil {
		r.names[repository] = map[string]string{}
	}
	r.names[repository][name] = image
	r.saveNames(r.names)
}

func (r *testRoot) saveNames(names map[string]map[string]string) {
	r.writeJSON("image/"+r.driver+"/"+repositoriesFile, map[string]any{"Repositories": names})
}

// testContainer is a container with its layers.
type testContainer struct {
	id, mount, init string
}

// container makes a container. more overrides parts of its configuration.
func (r *testRoot) container(name string, image digest.Digest, top *testLayer, init bool, more map[string]any, host any) testContainer {
	c := testContainer{id: hexOf("container " + name), mount: hexOf("mount " + name)}
	parent := ""
	if top != nil {
		parent = top.id
		r.write(r.mountDir(c.id)+"/parent", string(top.chain))
	}
	if init {
		c.init = c.mount + "-init"
		r.write(r.mountDir(c.id)+"/init-id", c.init)
		r.make(c.init, parent)
		parent = c.init
	}
	r.write(r.mountDir(c.id)+"/mount-id", c.mount)
	r.make(c.mount, parent)
	config := map[string]any{
		"ID": c.id, "Name": "/" + name, "Driver": r.driver, "Image": image, "State": map[string]any{"Running": false, "Pid": 0},
	}
	maps.Copy(config, more)
	r.writeJSON("containers/"+c.id+"/config.v2.json", config)
	if host != nil {
		r.writeJSON("containers/"+c.id+"/hostconfig.json", host)
	}
	return c
}

// sample is a root with a bit of everything.
type sample struct {
	*testRoot
	a, b, c           *testLayer
	base, middle, top digest.Digest // images of the layers a, a b, and a b c
	web, old          testContainer
}

const manifest = "sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// fill makes three images that share layers. The first has a name with a digest, the second has two tags, the third has no
// name. One of the two containers has a layer between the image and its own.
func fill(r *testRoot) *sample {
	s := &sample{testRoot: r}
	s.a = r.layer("a", nil)
	s.b = r.layer("b", s.a)
	s.c = r.layer("c", s.b)
	s.base = r.image(s.a, "base", "debian:12", "debian@"+manifest)
	s.middle = r.image(s.b, "middle", "localhost:5000/team/app:1", "localhost:5000/team/app:latest")
	s.top = r.image(s.c, "top")
	s.web = r.container("web", s.middle, s.b, true, map[string]any{"State": map[string]any{"Running": true}}, map[string]any{"StorageOpt": map[string]string{"size": "10G"}})
	s.old = r.container("old.one", s.top, s.c, false, nil, nil)
	return s
}

// inventory is the inventory of the sample.
func (s *sample) inventory() *migrate.Inventory {
	config := func(id digest.Digest) []byte {
		data, err := os.ReadFile(s.path(s.configFile(id)))
		require.NoError(s.t, err)
		return data
	}
	inv := &migrate.Inventory{
		Program: "docker",
		Driver:  s.driver,
		Images: []migrate.Image{
			{
				ID: s.base, Config: config(s.base), Layers: []string{s.a.id},
				Names: []string{"docker.io/library/debian:12"}, Digests: []string{"docker.io/library/debian@" + manifest},
			},
			{
				ID: s.middle, Config: config(s.middle), Layers: []string{s.a.id, s.b.id},
				Names: []string{"localhost:5000/team/app:1", "localhost:5000/team/app:latest"},
			},
			{ID: s.top, Config: config(s.top), Layers: []string{s.a.id, s.b.id, s.c.id}},
		},
		Containers: []migrate.Container{
			{ID: s.web.id, Name: "web", Image: s.middle, Layer: s.web.mount, Running: true, Dir: "containers/" + s.web.id},
			{ID: s.old.id, Name: "old.one", Image: s.top, Layer: s.old.mount, Dir: "containers/" + s.old.id},
		},
	}
	for _, l := range []*testLayer{s.a, s.b, s.c} {
		parent := ""
		if l.parent != nil {
			parent = l.parent.id
		}
		inv.Layers = append(inv.Layers, migrate.Layer{ID: l.id, Parent: parent, Kind: migrate.ImageLayer, ChainID: l.chain, DiffID: l.diff, Size: 1})
	}
	web := []migrate.Layer{
		{ID: s.web.init, Parent: s.b.id, Kind: migrate.InitLayer, Size: -1},
		{ID: s.web.mount, Parent: s.web.init, Kind: migrate.ContainerLayer, Size: -1, Limit: 10 << 30},
	}
	old := []migrate.Layer{{ID: s.old.mount, Parent: s.c.id, Kind: migrate.ContainerLayer, Size: -1}}
	if s.web.id < s.old.id {
		inv.Layers = append(append(inv.Layers, web...), old...)
	} else {
		inv.Layers = append(append(inv.Layers, old...), web...)
	}
	slices.SortFunc(inv.Images, func(a, b migrate.Image) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(inv.Containers, func(a, b migrate.Container) int { return cmp.Compare(a.ID, b.ID) })
	return inv
}

// makeSubvolumes makes contents as Docker does on btrfs.
func makeSubvolumes(r *testRoot) {
	r.mkdir("btrfs/subvolumes")
	dir, err := os.Open(r.path("btrfs/subvolumes"))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { dir.Close() })
	r.content = func(id, parent string) {
		if parent == "" {
			require.NoError(r.t, btrfsctl.CreateSubvolume(int(dir.Fd()), id, nil))
		} else {
			source, err := os.Open(r.path(r.tree(parent)))
			require.NoError(r.t, err)
			require.NoError(r.t, btrfsctl.Snapshot(int(dir.Fd()), id, int(source.Fd()), false, nil))
			source.Close()
		}
		r.write(r.tree(id)+"/file", id)
	}
}

func fdName(f *os.File) string { return strconv.Itoa(int(f.Fd())) }
