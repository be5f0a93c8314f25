// Package testroot makes graph roots as Docker does, for tests: with contents, tar-split and digests that agree.
package testroot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
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

// Root is a root with one driver: overlay2, vfs or btrfs.
type Root struct {
	Dir    string
	Driver string

	t     testing.TB
	names map[string]map[string]string
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
	r := &Root{Dir: dir, Driver: driver, t: t, names: make(map[string]map[string]string)}
	for _, name := range []string{
		"containers", "volumes", "image/" + driver + "/layerdb/mounts", "image/" + driver + "/layerdb/sha256",
		"image/" + driver + "/imagedb/content/sha256", "image/" + driver + "/distribution/v2metadata-by-diffid/sha256", driver,
	} {
		require.NoError(t, os.MkdirAll(r.path(name), 0o711))
	}
	return r
}

func (r *Root) path(elem ...string) string { return filepath.Join(append([]string{r.Dir}, elem...)...) }

func (r *Root) write(name, text string) {
	require.NoError(r.t, os.MkdirAll(filepath.Dir(r.path(name)), 0o755))
	require.NoError(r.t, os.WriteFile(r.path(name), []byte(text), 0o600))
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
	z := gzip.NewWriter(&parts)
	stream, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(layerTar), storage.NewJSONPacker(z), storage.NewDiscardFilePutter())
	require.NoError(r.t, err)
	_, err = io.Copy(io.Discard, stream)
	require.NoError(r.t, err)
	require.NoError(r.t, <-done)
	require.NoError(r.t, z.Close())

	db := r.LayerDir(l)
	r.write(db+"/cache-id", l.ID)
	r.write(db+"/diff", string(l.Diff))
	r.write(db+"/size", strconv.Itoa(len(layerTar)))
	r.write(db+"/tar-split.json.gz", parts.String())
	if parent != nil {
		r.write(db+"/parent", string(parent.Chain))
	}
	r.write("image/"+r.Driver+"/distribution/v2metadata-by-diffid/sha256/"+l.Diff.Encoded(), `[{"Digest":"`+string(l.Diff)+`","SourceRepository":"docker.io/library/test"}]`)
	r.content(l.ID, idOf(parent), entries)
	return l
}

// LayerDir is the directory of a layer in the layerdb, relative to the root.
func (r *Root) LayerDir(l *Layer) string {
	return "image/" + r.Driver + "/layerdb/sha256/" + l.Chain.Encoded()
}

func idOf(l *Layer) string {
	if l == nil {
		return ""
	}
	return l.ID
}

// Tree is the directory with the content of a layer.
func (r *Root) Tree(id string) string {
	switch r.Driver {
	case "btrfs":
		return r.path("btrfs/subvolumes", id)
	case "vfs":
		return r.path("vfs/dir", id)
	}
	return r.path(r.Driver, id, "diff")
}

// content makes the content of a layer.
func (r *Root) content(id, parent string, entries []Entry) {
	tree := r.Tree(id)
	require.NoError(r.t, os.MkdirAll(filepath.Dir(tree), 0o711))
	switch {
	case r.Driver == "overlay2":
		r.overlay(id, parent)
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
	dir := "overlay2/" + id
	require.NoError(r.t, os.MkdirAll(r.path(dir, "diff"), 0o755))
	short := strings.ToUpper(digest.FromString(id).Encoded()[:26])
	require.NoError(r.t, os.MkdirAll(r.path("overlay2/l"), 0o755))
	require.NoError(r.t, os.Symlink("../"+id+"/diff", r.path("overlay2/l", short)))
	r.write(dir+"/link", short)
	if parent == "" {
		return
	}
	require.NoError(r.t, os.Mkdir(r.path(dir, "work"), 0o700))
	r.write("overlay2/"+parent+"/committed", "")
	link, err := os.ReadFile(r.path("overlay2", parent, "link"))
	require.NoError(r.t, err)
	lower := "l/" + string(link)
	if below, err := os.ReadFile(r.path("overlay2", parent, "lower")); err == nil {
		lower += ":" + string(below)
	}
	r.write(dir+"/lower", lower)
}

func (r *Root) apply(tree string, e Entry) {
	path := filepath.Join(tree, e.Name)
	require.NoError(r.t, os.MkdirAll(filepath.Dir(path), 0o755))
	if removed, ok := strings.CutPrefix(filepath.Base(path), ".wh."); ok {
		path = filepath.Join(filepath.Dir(path), removed)
		if r.Driver != "overlay2" {
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
	var diffs []digest.Digest
	for l := top; l != nil; l = l.Parent {
		diffs = append([]digest.Digest{l.Diff}, diffs...)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": names},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	require.NoError(r.t, err)
	id := digest.FromBytes(config)
	r.write("image/"+r.Driver+"/imagedb/content/sha256/"+id.Encoded(), string(config))
	r.write("image/"+r.Driver+"/imagedb/metadata/sha256/"+id.Encoded()+"/lastUpdated", "2021-01-01T00:00:00Z")
	for _, name := range names {
		repository := name[:strings.LastIndexByte(name, ':')]
		repository = strings.TrimSuffix(repository, "@sha256")
		if r.names[repository] == nil {
			r.names[repository] = make(map[string]string)
		}
		r.names[repository][name] = id.String()
	}
	data, err := json.Marshal(map[string]any{"Repositories": r.names})
	require.NoError(r.t, err)
	r.write("image/"+r.Driver+"/repositories.json", string(data))
	return id
}

// Container makes a container of an image, with changes, and returns its ID and that of its layer.
func (r *Root) Container(name string, image digest.Digest, top *Layer, entries ...Entry) (id, layer string) {
	r.t.Helper()
	id, layer = digest.FromString("container "+name).Encoded(), digest.FromString("mount "+name).Encoded()
	mounts := "image/" + r.Driver + "/layerdb/mounts/" + id
	r.write(mounts+"/mount-id", layer)
	r.write(mounts+"/init-id", layer+"-init")
	r.write(mounts+"/parent", string(top.Chain))
	r.content(layer+"-init", top.ID, []Entry{{Name: "etc/"}, {Name: "etc/hostname"}})
	r.content(layer, layer+"-init", entries)
	config, err := json.Marshal(map[string]any{
		"ID": id, "Name": "/" + name, "Driver": r.Driver, "Image": image, "State": map[string]any{"Running": false}, "Path": "/bin/true",
	})
	require.NoError(r.t, err)
	r.write("containers/"+id+"/config.v2.json", string(config))
	r.write("containers/"+id+"/hostconfig.json", `{"NetworkMode":"default"}`)
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
