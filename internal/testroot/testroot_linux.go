// Package testroot makes graph roots as Docker does, for tests: with contents, tar-split and digests that agree.
package testroot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Root is a root with one driver: overlay2, fuse-overlayfs, aufs, vfs or btrfs, or another with Content.
type Root struct {
	Dir    string
	Driver string
	// Content makes the content of a layer, where that takes more than directories and files. nil: the Root does.
	Content func(id, parent string)
	// Names are the names of images: by repository, and by name in it, the ID.
	Names map[string]map[string]string

	t       testing.TB
	parents map[string]string // of layers in the driver
}

// Layer is a layer of images.
type Layer struct {
	ID          string
	Chain, Diff digest.Digest
	Parent      *Layer
}

// Entry is a name of a layer: a directory if it ends in a slash, a removed name if its last part begins with ".wh.".
type Entry struct {
	Name string
	Data string
	Link string // another name of the layer, which it is a hard link of
}

// New makes an empty root.
func New(t testing.TB, dir, driver string) *Root {
	t.Helper()
	r := &Root{Dir: dir, Driver: driver, t: t, Names: make(map[string]map[string]string), parents: make(map[string]string)}
	for _, name := range []string{
		"containers", "volumes", r.db("layerdb/mounts"), r.db("layerdb/sha256"), r.db("layerdb/tmp/write-set-1"), r.db("imagedb/content/sha256"),
		r.db("distribution/v2metadata-by-diffid/sha256"), driver,
	} {
		r.Mkdir(name)
	}
	return r
}

// db is a name in the driver's database.
func (r *Root) db(name string) string { return "image/" + r.Driver + "/" + name }

// Path is the path of a name in the root.
func (r *Root) Path(name string) string { return filepath.Join(r.Dir, name) }

// Mkdir makes a directory of the root.
func (r *Root) Mkdir(name string) { require.NoError(r.t, os.MkdirAll(r.Path(name), 0o755)) }

// Write writes a file of the root.
func (r *Root) Write(name, text string) {
	r.Mkdir(filepath.Dir(name))
	require.NoError(r.t, os.WriteFile(r.Path(name), []byte(text), 0o644))
}

// WriteJSON writes a file of the root, and returns its content.
func (r *Root) WriteJSON(name string, value any) []byte {
	data, err := json.Marshal(value)
	require.NoError(r.t, err)
	r.Write(name, string(data))
	return data
}

var when = time.Date(2021, 2, 3, 4, 5, 6, 0, time.UTC)

// makeTar makes a layer tar, with more zeros at its end than Go would write.
func (r *Root) makeTar(entries []Entry) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.Name, Mode: 0o640, Size: int64(len(e.Data)), ModTime: when, Uname: "user" + strconv.Itoa(i)}
		switch {
		case strings.HasSuffix(e.Name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case e.Link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.Link
		}
		require.NoError(r.t, tw.WriteHeader(h))
		_, err := io.WriteString(tw, e.Data)
		require.NoError(r.t, err)
	}
	require.NoError(r.t, tw.Close())
	buf.Write(make([]byte, 3*512))
	return buf.Bytes()
}

// Layer makes a layer of images.
func (r *Root) Layer(parent *Layer, entries ...Entry) *Layer {
	r.t.Helper()
	layerTar := r.makeTar(entries)
	l := &Layer{Diff: digest.FromBytes(layerTar), Parent: parent}
	l.Chain = l.Diff
	if parent != nil {
		l.Chain = digest.FromString(string(parent.Chain) + " " + string(l.Diff))
	}
	l.ID = digest.FromString("cache " + string(l.Chain)).Encoded()

	var parts bytes.Buffer
	stream, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(layerTar), storage.NewJSONPacker(&parts), storage.NewDiscardFilePutter())
	require.NoError(r.t, err)
	_, err = io.Copy(io.Discard, stream)
	require.NoError(r.t, err)
	require.NoError(r.t, <-done)
	r.AddLayer(l, len(layerTar), parts.String())
	r.Write(r.db("distribution/v2metadata-by-diffid/sha256/"+l.Diff.Encoded()), `[{"Digest":"`+string(l.Diff)+`","SourceRepository":"docker.io/library/test"}]`)
	r.MakeContent(l.ID, idOf(parent), entries...)
	return l
}

// AddLayer makes a layer's records. parts is the JSON of tar-split.
func (r *Root) AddLayer(l *Layer, size int, parts string) {
	r.t.Helper()
	dir := r.LayerDir(l)
	r.Write(dir+"/cache-id", l.ID)
	r.Write(dir+"/diff", string(l.Diff))
	r.Write(dir+"/size", strconv.Itoa(size))
	r.Write(dir+"/tar-split.json.gz", Zipped(r.t, parts))
	if l.Parent != nil {
		r.Write(dir+"/parent", string(l.Parent.Chain))
	}
}

// Zipped is a text in the form of gzip.
func Zipped(t testing.TB, text string) string {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := io.WriteString(z, text)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return out.String()
}

// LayerDir is the directory of a layer in the layerdb, relative to the root.
func (r *Root) LayerDir(l *Layer) string { return r.db("layerdb/sha256/" + l.Chain.Encoded()) }

// MountDir is the directory of a container in the layerdb, relative to the root.
func (r *Root) MountDir(container string) string { return r.db("layerdb/mounts/" + container) }

// ConfigFile is the configuration of an image, relative to the root.
func (r *Root) ConfigFile(image digest.Digest) string {
	return r.db("imagedb/content/sha256/" + image.Encoded())
}

func idOf(l *Layer) string {
	if l == nil {
		return ""
	}
	return l.ID
}

// Tree is the directory with the content of a layer.
func (r *Root) Tree(id string) string { return r.Path(r.TreeName(id)) }

// TreeName is Tree, relative to the root.
func (r *Root) TreeName(id string) string {
	switch r.Driver {
	case "btrfs":
		return "btrfs/subvolumes/" + id
	case "vfs":
		return "vfs/dir/" + id
	case "aufs":
		return "aufs/diff/" + id
	}
	return r.Driver + "/" + id + "/diff"
}

// isOverlay reports whether the driver has the form of overlay2.
func (r *Root) isOverlay() bool { return r.Driver == "overlay2" || r.Driver == "fuse-overlayfs" }

// MakeContent makes the content of a layer.
func (r *Root) MakeContent(id, parent string, entries ...Entry) {
	r.t.Helper()
	r.parents[id] = parent
	if r.Content != nil {
		r.Content(id, parent)
		return
	}
	tree := r.Tree(id)
	require.NoError(r.t, os.MkdirAll(filepath.Dir(tree), 0o711))
	switch {
	case r.isOverlay():
		r.overlay(id, parent)
	case r.Driver == "aufs":
		r.aufs(id, parent)
	case r.Driver == "btrfs" && parent == "":
		r.run("btrfs", "subvolume", "create", tree)
	case r.Driver == "btrfs":
		r.run("btrfs", "subvolume", "snapshot", r.Tree(parent), tree)
	case parent != "":
		r.run("cp", "-a", r.Tree(parent), tree)
	default:
		require.NoError(r.t, os.Mkdir(tree, 0o755))
	}
	for _, e := range entries {
		r.apply(tree, e)
	}
	for i := len(entries) - 1; i >= 0; i-- {
		r.settle(filepath.Join(tree, entries[i].Name))
	}
	r.settle(tree)
}

func (r *Root) run(args ...string) {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(r.t, err, "%v: %s", args, out)
}

// overlay makes the directory of a layer of overlay2.
func (r *Root) overlay(id, parent string) {
	dir := r.Driver + "/" + id
	r.Mkdir(dir + "/diff")
	r.Mkdir(r.Driver + "/l")
	require.NoError(r.t, os.Symlink("../"+id+"/diff", r.Path(r.Driver+"/l/"+LinkOf(id))))
	r.Write(dir+"/link", LinkOf(id))
	if parent == "" {
		return
	}
	r.Mkdir(dir + "/work")
	r.Write(r.Driver+"/"+parent+"/committed", "")
	var lower []string
	for ; parent != ""; parent = r.parents[parent] {
		lower = append(lower, "l/"+LinkOf(parent))
	}
	r.Write(dir+"/lower", strings.Join(lower, ":"))
}

// LinkOf is the short name of a layer of overlay2.
func LinkOf(id string) string { return strings.ToUpper(digest.FromString(id).Encoded()[:26]) }

// aufs makes the directories of a layer of aufs.
func (r *Root) aufs(id, parent string) {
	above := ""
	for ; parent != ""; parent = r.parents[parent] {
		above += parent + "\n"
	}
	r.Write("aufs/layers/"+id, above)
	r.Mkdir("aufs/mnt/" + id)
	r.Mkdir("aufs/diff/" + id)
}

func (r *Root) apply(tree string, e Entry) {
	path := filepath.Join(tree, e.Name)
	require.NoError(r.t, os.MkdirAll(filepath.Dir(path), 0o755))
	if removed, ok := strings.CutPrefix(filepath.Base(path), ".wh."); ok {
		path = filepath.Join(filepath.Dir(path), removed)
		if !r.isOverlay() {
			require.NoError(r.t, os.RemoveAll(path))
			return
		}
		require.NoError(r.t, unix.Mknod(path, unix.S_IFCHR, 0))
		return
	}
	switch {
	case strings.HasSuffix(e.Name, "/"):
		require.NoError(r.t, os.MkdirAll(path, 0o755))
	case e.Link != "":
		require.NoError(r.t, os.Link(filepath.Join(tree, e.Link), path))
	default:
		_ = os.Remove(path) // of the layer below
		require.NoError(r.t, os.WriteFile(path, []byte(e.Data), 0o640))
	}
}

func (r *Root) settle(path string) {
	ts := unix.NsecToTimespec(when.UnixNano())
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if !os.IsNotExist(err) { // a removed name
		require.NoError(r.t, err)
	}
}

// Image makes an image with names such as "debian:12", whose last layer is top.
func (r *Root) Image(top *Layer, names ...string) digest.Digest {
	r.t.Helper()
	return r.AddImage(top, strings.Join(names, " "), names...)
}

// AddImage is Image with a comment, which makes an image another one.
func (r *Root) AddImage(top *Layer, comment string, names ...string) digest.Digest {
	r.t.Helper()
	var diffs []digest.Digest
	for l := top; l != nil; l = l.Parent {
		diffs = append([]digest.Digest{l.Diff}, diffs...)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "comment": comment, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	require.NoError(r.t, err)
	id := digest.FromBytes(config)
	r.Write(r.ConfigFile(id), string(config))
	r.Write(r.db("imagedb/metadata/sha256/"+id.Encoded()+"/lastUpdated"), "2021-01-01T00:00:00Z")
	for _, name := range names {
		r.Name(name, id.String())
	}
	r.SaveNames(r.Names)
	return id
}

// Name gives a name to an image.
func (r *Root) Name(name, image string) {
	repository := strings.TrimSuffix(name[:strings.LastIndexAny(name, ":@")], "@sha256")
	if r.Names[repository] == nil {
		r.Names[repository] = make(map[string]string)
	}
	r.Names[repository][name] = image
	r.SaveNames(r.Names)
}

// SaveNames writes names of images.
func (r *Root) SaveNames(names map[string]map[string]string) {
	r.WriteJSON(r.db("repositories.json"), map[string]any{"Repositories": names})
}

// Container is a container, whose layers are made apart.
type Container struct {
	ID, Name    string
	Image       digest.Digest
	Top         *Layer // of the image
	Mount, Init string // its layers; Init may be ""
	// More are parts of its configuration that are not those of a container that is stopped.
	More map[string]any
	Host any // hostconfig.json; nil: none
}

// AddContainer makes the records of a container.
func (r *Root) AddContainer(c Container) {
	r.t.Helper()
	mounts := r.MountDir(c.ID)
	r.Write(mounts+"/mount-id", c.Mount)
	if c.Init != "" {
		r.Write(mounts+"/init-id", c.Init)
	}
	if c.Top != nil {
		r.Write(mounts+"/parent", string(c.Top.Chain))
	}
	config := map[string]any{
		"ID": c.ID, "Name": "/" + c.Name, "Driver": r.Driver, "Image": c.Image, "State": map[string]any{"Running": false, "Pid": 0}, "Path": "/bin/true",
	}
	maps.Copy(config, c.More)
	r.WriteJSON("containers/"+c.ID+"/config.v2.json", config)
	if c.Host != nil {
		r.WriteJSON("containers/"+c.ID+"/hostconfig.json", c.Host)
	}
}

// Container makes a container of an image, with changes, and returns its ID and that of its layer.
func (r *Root) Container(name string, image digest.Digest, top *Layer, entries ...Entry) (id, layer string) {
	r.t.Helper()
	id, layer = digest.FromString("container "+name).Encoded(), digest.FromString("mount "+name).Encoded()
	r.MakeContent(layer+"-init", top.ID, Entry{Name: "etc/"}, Entry{Name: "etc/hostname"})
	r.MakeContent(layer, layer+"-init", entries...)
	r.AddContainer(Container{
		ID: id, Name: name, Image: image, Top: top, Mount: layer, Init: layer + "-init", Host: map[string]any{"NetworkMode": "default"},
	})
	return id, layer
}

// Sample is a root with three images, of which one has no name, and two containers.
type Sample struct {
	*Root
	Base, App, Bare      *Layer
	Debian, Web, NoName  digest.Digest // images of these layers
	Shop, Blog           string        // containers of Debian and Web
	ShopLayer, BlogLayer string
}

// NewSample makes a Sample.
func NewSample(t testing.TB, dir, driver string) *Sample {
	t.Helper()
	s := &Sample{Root: New(t, dir, driver)}
	s.Base = s.Layer(nil, Entry{Name: "etc/"}, Entry{Name: "etc/passwd", Data: "root:x:0:0"}, Entry{Name: "usr/"},
		Entry{Name: "usr/tool", Data: strings.Repeat("tool ", 4000)}, Entry{Name: "usr/link", Link: "usr/tool"}, Entry{Name: "var/"}, Entry{Name: "var/log", Data: "log"})
	s.App = s.Layer(s.Base, Entry{Name: "etc/"}, Entry{Name: "etc/.wh.passwd"}, Entry{Name: "etc/app", Data: "config"}, Entry{Name: "usr/"}, Entry{Name: "usr/app", Data: strings.Repeat("app", 3000)})
	s.Bare = s.Layer(s.App, Entry{Name: "etc/"}, Entry{Name: "etc/bare", Data: "bare"})
	s.Debian = s.Image(s.Base, "debian:12", "debian@sha256:"+strings.Repeat("0123456789abcdef", 4))
	s.Web = s.Image(s.App, "localhost:5000/team/web:1", "localhost:5000/team/web:latest")
	s.NoName = s.Image(s.Bare)
	s.Shop, s.ShopLayer = s.Container("shop", s.Debian, s.Base, Entry{Name: "etc/"}, Entry{Name: "etc/shop", Data: "shop"}, Entry{Name: "var/"}, Entry{Name: "var/.wh.log"})
	s.Blog, s.BlogLayer = s.Container("blog", s.Web, s.App, Entry{Name: "usr/"}, Entry{Name: "usr/app", Data: "changed"})
	return s
}
