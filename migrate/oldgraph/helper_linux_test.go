package oldgraph

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/migrate"
)

// oldRoot is a root of Docker 0.6 in the making.
type oldRoot struct {
	t   testing.TB
	dir string
}

func newRoot(t testing.TB, dir string) *oldRoot {
	r := &oldRoot{t, dir}
	for _, name := range []string{"graph/:tmp:", "graph/_dockerinit", "containers", "volumes/v/layer"} {
		require.NoError(t, os.MkdirAll(r.path(name), 0o700))
	}
	return r
}

func (r *oldRoot) path(name string) string { return filepath.Join(r.dir, filepath.FromSlash(name)) }

func (r *oldRoot) write(name, text string) {
	require.NoError(r.t, os.MkdirAll(filepath.Dir(r.path(name)), 0o755))
	require.NoError(r.t, os.WriteFile(r.path(name), []byte(text), 0o644))
}

func (r *oldRoot) writeJSON(name string, value any) {
	data, err := json.Marshal(value)
	require.NoError(r.t, err)
	r.write(name, string(data))
}

// id is an ID that begins with the name.
func id(name string) string { return name + strings.Repeat("0", 64-len(name)) }

// image adds an image with files, given by their paths and texts. A path that ends in a slash is a directory.
func (r *oldRoot) image(name, parent string, files map[string]string) string {
	record := map[string]any{
		"id": id(name), "created": "2013-06-13T14:03:50.821769-07:00", "docker_version": "0.6.5", "architecture": "x86_64",
		"author": "me", "comment": "of " + name, "container": id("cafe"), "Size": 12,
		"container_config": map[string]any{"Cmd": []string{"/bin/sh", "-c", "make " + name}},
		"config":           map[string]any{"Cmd": []string{name}, "Dns": nil, "PortSpecs": []string{"8080:80", "53/udp"}, "VolumesFrom": ""},
	}
	if parent != "" {
		record["parent"] = id(parent)
	}
	r.writeJSON("graph/"+id(name)+"/json", record)
	r.write("graph/"+id(name)+"/layersize", "12")
	r.tree("graph/"+id(name)+"/layer", files)
	return id(name)
}

func (r *oldRoot) container(name, image string, files map[string]string) string {
	r.writeJSON("containers/"+id(name)+"/config.json", map[string]any{
		"ID": id(name), "Name": "/" + name, "Image": id(image), "State": map[string]any{"Running": name == "running"},
	})
	r.tree("containers/"+id(name)+"/rw", files)
	return id(name)
}

func (r *oldRoot) tree(dir string, files map[string]string) {
	require.NoError(r.t, os.MkdirAll(r.path(dir), 0o755))
	for name, text := range files {
		if strings.HasSuffix(name, "/") {
			require.NoError(r.t, os.MkdirAll(r.path(dir+"/"+name), 0o755))
			continue
		}
		r.write(dir+"/"+name, text)
	}
}

// sample has three images, one above the other, and one of its own, with all that aufs writes.
func (r *oldRoot) sample() {
	r.image("a", "", map[string]string{
		"etc/passwd": "root", "etc/group": "wheel", "dir/old": "1", "dir/kept": "2", "opaque/x": "x", "opaque/y": "y",
		".wh..wh.aufs": "", ".wh..wh.orph/": "", ".wh..wh.plnk/1.2": "linked",
	})
	require.NoError(r.t, os.Link(r.path("graph/"+id("a")+"/layer/etc/passwd"), r.path("graph/"+id("a")+"/layer/etc/shadow")))
	require.NoError(r.t, unix.Mknod(r.path("graph/"+id("a")+"/layer/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(r.t, os.Symlink("../../../../etc/passwd", r.path("graph/"+id("a")+"/layer/link")))
	require.NoError(r.t, unix.Lsetxattr(r.path("graph/"+id("a")+"/layer/etc/group"), "user.note", []byte("x"), 0))
	r.image("b", "a", map[string]string{
		"dir/.wh.old": "", "dir/new": "3", "opaque/.wh..wh..opq": "", "opaque/z": "z", ".wh..wh.plnk/": "",
	})
	r.image("c", "b", map[string]string{".wh.etc": "", "c": "c"})
	r.image("d", "a", map[string]string{"d": "d"})
	r.container("running", "b", map[string]string{"dir/.wh.new": "", "written": "w"})
	r.writeJSON("repositories", map[string]any{"Repositories": map[string]map[string]string{
		"debian": {"7": id("b"), "latest": id("b")}, "me/app": {"1": id("d")},
	}})
}

// trees are the files of the sample's layers, by ID.
func trees() map[string]map[string]string {
	a := map[string]string{"/etc/passwd": "root", "/etc/shadow": "root", "/etc/group": "wheel", "/dir/old": "1", "/dir/kept": "2", "/opaque/x": "x", "/opaque/y": "y", "/null": "c", "/link": "../../../../etc/passwd"}
	with := func(base map[string]string, changes map[string]string, gone ...string) map[string]string {
		tree := map[string]string{}
		for name, text := range base {
			tree[name] = text
		}
		for _, name := range gone {
			delete(tree, name)
		}
		for name, text := range changes {
			tree[name] = text
		}
		return tree
	}
	b := with(a, map[string]string{"/dir/new": "3", "/opaque/z": "z"}, "/dir/old", "/opaque/x", "/opaque/y")
	return map[string]map[string]string{
		id("a"):       a,
		id("b"):       b,
		id("c"):       with(b, map[string]string{"/c": "c"}, "/etc/passwd", "/etc/shadow", "/etc/group"),
		id("d"):       with(a, map[string]string{"/d": "d"}),
		id("running"): with(b, map[string]string{"/written": "w", "/init": "made"}, "/dir/new"),
	}
}

func (r *oldRoot) open() *Source {
	source, err := Open(context.Background(), r.dir)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { require.NoError(r.t, source.Close()) })
	return source
}

func (r *oldRoot) inventory() *migrate.Inventory {
	r.t.Helper()
	inv, err := r.open().Inventory(context.Background())
	require.NoError(r.t, err)
	return inv
}
