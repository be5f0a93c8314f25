package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/internal/bindmount"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/testfs"
)

// newStore makes a store on a btrfs of its own.
func newStore(t *testing.T) at {
	t.Helper()
	a := at{root: filepath.Join(testfs.Btrfs(t), "store")}
	a.ok(t, "init")
	t.Cleanup(func() {
		views, err := os.ReadDir(filepath.Join(a.root, "btrfs/views"))
		assert.NoError(t, err)
		assert.Empty(t, views, "no view is left")
	})
	return a
}

// with runs do in the mounted layer.
func (a at) with(t *testing.T, layer string, do func(dir string)) {
	t.Helper()
	dir := strings.TrimSpace(a.ok(t, "mount", layer))
	defer a.ok(t, "unmount", layer)
	do(dir)
}

func write(t *testing.T, path, data string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(data), 0o644))
}

// state is everything that must not be changed by a command that fails.
func (a at) state(t *testing.T) string {
	t.Helper()
	return a.ok(t, "ls", "--json") + a.ok(t, "images", "--json")
}

func writeImage(t *testing.T, tag string, layers int64) (string, v1.Image) {
	t.Helper()
	img, err := random.Image(1024, layers)
	require.NoError(t, err)
	parsed, err := name.NewTag(tag)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, tarball.WriteToFile(path, parsed, img))
	return path, img
}

func TestLayers(t *testing.T) {
	a, begun := newStore(t), time.Now()
	assert.Equal(t, "base\n", a.ok(t, "create", "base"))
	a.with(t, "base", func(dir string) {
		write(t, filepath.Join(dir, "file"), "base")
		write(t, filepath.Join(dir, "gone"), "base")
	})
	assert.Equal(t, "web\n", a.ok(t, "create", "web", "--parent", "base", "--size", "1G", "--read-write"))
	a.with(t, "web", func(dir string) {
		write(t, filepath.Join(dir, "file"), "changed")
		write(t, filepath.Join(dir, "new"), "new")
		require.NoError(t, os.Remove(filepath.Join(dir, "gone")))
	})

	t.Run("ls", func(t *testing.T) {
		var layers []api.Layer
		a.json(t, &layers, "ls")
		require.Len(t, layers, 2)
		assert.Equal(t, "base", layers[0].Name)
		assert.True(t, layers[0].Sealed)
		assert.Equal(t, "base", layers[1].Parent)
		assert.False(t, layers[1].Sealed)
		assert.EqualValues(t, 1<<30, layers[1].Limit)
		assert.WithinRange(t, layers[1].Created, begun.Add(-time.Second), time.Now().Add(time.Second))
		require.NotNil(t, layers[1].Usage, "the limit turned quotas on")
		assert.Equal(t, "base\nweb\n", a.ok(t, "ls", "--names"))
		assert.Regexp(t, `(?m)^NAME +PARENT +SEALED +LIMIT +USAGE +CREATED$`, a.ok(t, "ls"))
		assert.Regexp(t, `(?m)^web +base +false +1GiB `, a.ok(t, "ls"))
	})
	t.Run("tree", func(t *testing.T) {
		assert.Equal(t, "base\n└── web  limit 1GiB\n", a.ok(t, "tree"))
		var roots []*treeNode
		a.json(t, &roots, "tree")
		require.Len(t, roots, 1)
		assert.Equal(t, "web", roots[0].Children[0].Name)
	})
	t.Run("status", func(t *testing.T) {
		var status map[string]string
		a.json(t, &status, "status")
		assert.Equal(t, "btrfs", status["Driver"])
		assert.Equal(t, "2", status["Layers"])
		assert.Contains(t, a.ok(t, "status"), "Layers: 2\n")
	})
	const changes = "C /file\nD /gone\nA /new\n"
	t.Run("changes", func(t *testing.T) {
		assert.Equal(t, changes, a.ok(t, "changes", "web"))
		assert.Equal(t, changes, a.ok(t, "changes", "web", "base"))
		assert.Equal(t, changes, a.ok(t, "changes", "web", "--walk"))
		assert.Equal(t, "A /file\nA /new\n", a.ok(t, "changes", "web", "--whole"))
		assert.Equal(t, "C /file\x00D /gone\x00A /new\x00", a.ok(t, "changes", "web", "-0"))
		assert.Empty(t, a.ok(t, "changes", "web", "web"))
	})
	t.Run("the way is said", func(t *testing.T) {
		assert.Contains(t, a.run(t, "changes", "web", "--log-level", "info").err, "asked the filesystem")
		r := a.run(t, "changes", "web", "--walk", "--log-level", "info")
		assert.Contains(t, r.err, "way=walked reason=asked")
		assert.Empty(t, a.run(t, "changes", "web").err)
		var result struct {
			Native  bool
			Reason  string
			Changes []api.Change
		}
		a.json(t, &result, "changes", "web")
		assert.True(t, result.Native)
		assert.Equal(t, api.Change{Kind: "C", Path: "/file"}, result.Changes[0])
		a.json(t, &result, "changes", "web", "--walk")
		assert.False(t, result.Native)
		assert.Equal(t, "asked", result.Reason)
	})
	t.Run("diff and apply", func(t *testing.T) {
		for i, compression := range []string{"none", "gzip", "zstd"} {
			file, copied := filepath.Join(t.TempDir(), "diff"), "copy"+compression
			a.ok(t, "diff", "web", "-o", file, "--compress", compression)
			a.ok(t, "create", copied, "--parent", "base")
			if i == 0 {
				f, err := os.Open(file)
				require.NoError(t, err)
				at{root: a.root, stdin: f}.ok(t, "apply", copied)
				require.NoError(t, f.Close())
			} else {
				a.ok(t, "apply", copied, file)
			}
			assert.Equal(t, changes, a.ok(t, "changes", copied))
			assert.Empty(t, a.ok(t, "changes", copied, "web", "--walk"))

			r := a.run(t, "diff", "web", "-o", file)
			assert.Equal(t, exitExists, r.code, "it is not written over")
			assert.Contains(t, r.err, file)
			a.ok(t, "rm", copied)
		}
		assert.Equal(t, a.ok(t, "diff", "web"), a.ok(t, "diff", "web", "--walk"), "the same bytes")
		tr := tar.NewReader(strings.NewReader(a.ok(t, "diff", "web")))
		var names []string
		for {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			names = append(names, h.Name)
		}
		slices.Sort(names)
		assert.Equal(t, []string{".wh.gone", "file", "new"}, names)
	})
	t.Run("limit and usage", func(t *testing.T) {
		a.ok(t, "limit", "web", "2G")
		var usage []api.Usage
		a.json(t, &usage, "usage", "web", "base")
		assert.Equal(t, "web", usage[0].Name)
		assert.EqualValues(t, 2<<30, usage[0].Limit)
		assert.NotZero(t, usage[0].Bytes)
		assert.Regexp(t, `(?m)^web +\S+ +2GiB +0%$`, a.ok(t, "usage", "web"))
		a.ok(t, "limit", "web", "none")
		assert.NotContains(t, a.ok(t, "usage", "web", "--json"), "limit")
	})
	t.Run("rm", func(t *testing.T) {
		r := a.run(t, "rm", "base")
		assert.Equal(t, exitPrecondition, r.code)
		assert.Contains(t, r.err, "web")
		assert.Equal(t, "web\nbase\n", a.ok(t, "rm", "base", "web", "base"), "children first, each once")
		assert.Empty(t, a.ok(t, "ls", "--names"))
		a.ok(t, "rm", "--force", "base")
	})
	t.Run("a name is made up", func(t *testing.T) {
		made := strings.TrimSpace(a.ok(t, "create"))
		assert.Regexp(t, `^[0-9a-f]{16}$`, made)
		a.ok(t, "rm", made)
	})
	t.Run("rm --force of a parent", func(t *testing.T) {
		a.ok(t, "create", "p")
		a.ok(t, "create", "c", "--parent", "p")
		a.ok(t, "rm", "--force", "p")
		assert.Equal(t, "c\n", a.ok(t, "tree"))
		a.ok(t, "rm", "c")
	})
}

func TestLimitIsEnforced(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "web", "--size", "20M", "--read-write")
	a.with(t, "web", func(dir string) {
		big := filepath.Join(dir, "big")
		err := os.WriteFile(big, bytes.Repeat([]byte("x"), 40<<20), 0o644)
		if err == nil { // it is still in memory
			f, openErr := os.OpenFile(big, os.O_WRONLY, 0)
			require.NoError(t, openErr)
			err = f.Sync()
			require.NoError(t, f.Close())
		}
		require.ErrorIs(t, err, syscall.EDQUOT)
		require.NoError(t, os.Remove(big))
	})
}

func TestDriverOptions(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "web", "--read-write", "--storage-opt", "btrfs.size=1G")
	a.ok(t, "create", "image", "--storage-opt", "btrfs.size=1G")
	var layers []api.Layer
	a.json(t, &layers, "ls")
	assert.Zero(t, layers[0].Limit, "the default is for read-write layers")
	assert.EqualValues(t, 1<<30, layers[1].Limit)
	a.ok(t, "rm", "web", "image")
}

func TestMount(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "web")
	target := t.TempDir()

	t.Run("own directory", func(t *testing.T) {
		dir := strings.TrimSpace(a.ok(t, "mount", "web"))
		assert.Equal(t, filepath.Join(a.root, "mnt/web"), dir)
		write(t, filepath.Join(dir, "file"), "data")
		assert.Equal(t, exitExists, a.run(t, "mount", "web").code)
		r := a.run(t, "rm", "web")
		assert.Equal(t, exitPrecondition, r.code)
		assert.Contains(t, r.err, dir)
		assert.Equal(t, exitPrecondition, a.run(t, "deinit", "--yes").code)

		a.ok(t, "create", "copy", "--parent", "web")
		write(t, filepath.Join(dir, "later"), "data")
		assert.Equal(t, "C /later\n", strings.ReplaceAll(a.ok(t, "changes", "web", "copy"), "A", "C"), "a mounted parent is copied and not sealed")
		a.ok(t, "rm", "copy")

		a.ok(t, "unmount", "web")
		assert.NoDirExists(t, dir)
		assert.Equal(t, exitNotFound, a.run(t, "unmount", "web").code)
	})
	t.Run("at a target", func(t *testing.T) {
		assert.Equal(t, target+"\n", a.ok(t, "mount", "web", target))
		assert.FileExists(t, filepath.Join(target, "file"))
		a.ok(t, "unmount", target)
		assert.DirExists(t, target)
		assert.NoFileExists(t, filepath.Join(target, "file"))
	})
	t.Run("at two targets", func(t *testing.T) {
		other := t.TempDir()
		a.ok(t, "mount", "web", target)
		a.ok(t, "mount", "web", other)
		a.ok(t, "unmount", "web")
		assert.NoFileExists(t, filepath.Join(target, "file"))
		assert.NoFileExists(t, filepath.Join(other, "file"))
	})
	t.Run("in use", func(t *testing.T) {
		a.ok(t, "mount", "web", target)
		f, err := os.Open(filepath.Join(target, "file"))
		require.NoError(t, err)
		assert.Equal(t, exitPrecondition, a.run(t, "unmount", "web").code)
		require.NoError(t, f.Close())
		a.ok(t, "unmount", "web")
	})
	t.Run("read-only", func(t *testing.T) {
		a.ok(t, "mount", "--read-only", "web", target)
		assert.ErrorIs(t, os.WriteFile(filepath.Join(target, "file"), nil, 0o644), syscall.EROFS)
		a.ok(t, "unmount", "web")
	})
	t.Run("a sealed layer is read-only", func(t *testing.T) {
		a.ok(t, "create", "child", "--parent", "web")
		a.ok(t, "mount", "web", target)
		assert.ErrorIs(t, os.WriteFile(filepath.Join(target, "file"), nil, 0o644), syscall.EROFS)
		a.ok(t, "unmount", target)
	})
	t.Run("the target is made", func(t *testing.T) {
		made := filepath.Join(target, "made")
		assert.Equal(t, made+"\n", a.ok(t, "mount", "web", made+"/"))
		assert.FileExists(t, filepath.Join(made, "file"))
		a.ok(t, "unmount", "web")
		entries, err := os.ReadDir(made)
		require.NoError(t, err, "it stays")
		assert.Empty(t, entries)
		a.ok(t, "mount", "web", made)
		a.ok(t, "unmount", made)
		require.NoError(t, os.Remove(made))
	})
	t.Run("no target, no layer", func(t *testing.T) {
		none := filepath.Join(target, "none")
		r := a.run(t, "mount", "web", filepath.Join(none, "deep"))
		assert.Equal(t, exitNotFound, r.code)
		assert.Contains(t, r.err, none)
		assert.Equal(t, exitNotFound, a.run(t, "mount", "none", none).code)
		assert.NoDirExists(t, none)
		link := filepath.Join(target, "link")
		require.NoError(t, os.Symlink("nowhere", link))
		r = a.run(t, "mount", "web", link)
		assert.Equal(t, exitUsage, r.code)
		assert.Contains(t, r.err, link)
		require.NoError(t, os.Remove(link))
		assert.Equal(t, exitNotFound, a.run(t, "unmount", target).code)
		assert.Equal(t, exitNotFound, a.run(t, "unmount", "/proc").code)
		file := filepath.Join(target, "plain")
		write(t, file, "")
		assert.Equal(t, exitUsage, a.run(t, "mount", "web", file).code)
		assert.Equal(t, exitNotFound, a.run(t, "mount", "web", filepath.Join(file, "below")).code)
	})
}

// A layer that is mounted after rm has looked is not removed, and rm says where it is mounted.
func TestMountedMeanwhile(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "web")
	target := t.TempDir()
	a.ok(t, "mount", "web", target)
	program := &app{root: a.root, driverName: "auto", log: slog.New(slog.DiscardHandler)}
	require.NoError(t, program.with(t.Context(), func(s *store) error {
		v, err := s.Driver.Backend().Stat(t.Context(), "web")
		require.NoError(t, err)
		err = s.Driver.Backend().Remove(t.Context(), "web")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		why := s.WhyKept(t.Context(), v, err)
		require.ErrorIs(t, why, errdefs.ErrFailedPrecondition)
		assert.Contains(t, why.Error(), target)
		assert.Contains(t, why.Error(), "cowshed unmount web")
		require.NoError(t, bindmount.Unmount(target))
		assert.Equal(t, err, s.WhyKept(t.Context(), v, err), "another reason stays as it is")
		return nil
	}))
	a.ok(t, "rm", "web")
}

func TestImages(t *testing.T) {
	a := newStore(t)
	path, img := writeImage(t, "app:1", 3)
	assert.Equal(t, "app:1\n", a.ok(t, "import", path))
	id, err := img.ConfigName()
	require.NoError(t, err)
	var images []imageInfo
	a.json(t, &images, "images")
	require.Len(t, images, 1)
	assert.Equal(t, id.String(), images[0].ID.String())
	assert.Len(t, images[0].Layers, 3)
	assert.Regexp(t, `(?m)^app:1 +`+id.Hex[:12], a.ok(t, "images"))
	top := images[0].Layers[2]
	assert.Contains(t, a.ok(t, "tree"), top[:12]+"  image app:1")

	t.Run("layers from an image", func(t *testing.T) {
		a.ok(t, "create", "web", "--parent", "app:1")
		a.ok(t, "create", "side", "--parent", images[0].Layers[1][:12])
		assert.Equal(t, top, a.layer(t, "web").Parent)
		assert.Equal(t, images[0].Layers[1], a.layer(t, "side").Parent)
		a.ok(t, "rm", "side")
	})
	t.Run("round trip", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "layout")
		digest := strings.TrimSpace(a.ok(t, "export", "app:1", "oci:"+dir+":v1"))
		assert.FileExists(t, filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(digest, "sha256:")))
		var imported struct {
			imageInfo
			Made, Reused []string
		}
		a.json(t, &imported, "import", "oci:"+dir, "--name", "again")
		assert.Equal(t, id.String(), imported.ID.String(), "the image is the same")
		assert.Empty(t, imported.Made)
		a.ok(t, "rmi", "again")
	})
	t.Run("a layer through a pipe", func(t *testing.T) {
		a.with(t, "web", func(dir string) { write(t, filepath.Join(dir, "web"), "web") })
		archive := a.ok(t, "export", "web", "docker-archive:-:web:1")
		at{root: a.root, stdin: strings.NewReader(archive)}.ok(t, "import", "-")
		assert.Empty(t, a.ok(t, "changes", "web", "web:1", "--walk"))
		a.ok(t, "rmi", "web:1")
	})
	t.Run("an image and a layer of the same name", func(t *testing.T) {
		a.ok(t, "snapshot", "web", "kept")
		a.ok(t, "import", path, "--name", "web")
		a.ok(t, "import", path, "--name", "web@kept")
		a.ok(t, "import", path, "--name", top[:12])
		ids := make(map[string]string)
		export := func(name string) string {
			var exported struct{ ID string }
			a.json(t, &exported, "export", name, "oci:"+filepath.Join(t.TempDir(), "new"))
			ids[name] = exported.ID
			return exported.ID
		}
		for _, name := range []string{"web", "web@kept"} {
			r := a.run(t, "export", name, "oci:"+filepath.Join(t.TempDir(), "new"))
			assert.Equal(t, exitUsage, r.code)
			assert.Contains(t, r.err, "say image:"+name+" or layer:"+name)
			assert.Equal(t, id.String(), export("image:"+name))
			assert.NotEqual(t, id.String(), export("layer:"+name))
		}
		assert.Equal(t, id.String(), export(top[:12]), "it is the image's name in full")
		a.ok(t, "import", path, "--name", "layer:web")
		assert.Equal(t, id.String(), export("layer:web"), "it is the image's name in full")
		for _, name := range []string{"image:none", "layer:none", "layer:app:1"} {
			assert.NotZero(t, a.run(t, "export", name, "oci:"+filepath.Join(t.TempDir(), "new")).code, name)
		}
		a.ok(t, "rmi", "web", "web@kept", top[:12], "layer:web")
		assert.Equal(t, ids["layer:web@kept"], export("web@kept"), "no image has the name any more")
		a.ok(t, "snapshot", "rm", "web", "kept")
	})
	t.Run("what images need stays", func(t *testing.T) {
		before := a.state(t)
		for _, args := range [][]string{{"rm", top}, {"rm", top[:12]}, {"rm", "--force", top}, {"apply", "app:1", path}} {
			r := a.run(t, args...)
			assert.Equal(t, exitPrecondition, r.code, "%v: %s", args, r.err)
			assert.Contains(t, r.err, "app:1")
		}
		assert.Equal(t, before, a.state(t))
	})
	t.Run("an image is mounted read-only", func(t *testing.T) {
		target := t.TempDir()
		a.ok(t, "mount", "app:1", target)
		assert.ErrorIs(t, os.WriteFile(filepath.Join(target, "x"), nil, 0o644), syscall.EROFS)
		assert.Equal(t, exitPrecondition, a.run(t, "rmi", "app:1").code)
		a.ok(t, "unmount", target)
	})
	t.Run("a limit is for layers made from it", func(t *testing.T) {
		before := a.state(t)
		for _, name := range []string{"app:1", top, images[0].Layers[0][:12]} {
			r := a.run(t, "limit", name, "10M")
			assert.Equal(t, exitPrecondition, r.code, r.err)
			assert.Contains(t, r.err, "image app:1")
			assert.Contains(t, r.err, "cowshed create NAME --parent "+name)
		}
		assert.Equal(t, before, a.state(t))
		a.ok(t, "limit", "app:1", "none")
		a.ok(t, "limit", "web", "10M")
	})
	t.Run("rm is for layers, rmi for images", func(t *testing.T) {
		before := a.state(t)
		a.ok(t, "import", path, "--name", "lib/app")
		for _, name := range []string{"app:1", "lib/app"} {
			r := a.run(t, "rm", name)
			assert.Equal(t, exitNotFound, r.code, r.err)
			assert.Contains(t, r.err, "cowshed rmi "+name)
		}
		assert.Empty(t, a.ok(t, "rm", "--force", "app:1"), "no layer of that name is there")
		a.ok(t, "rmi", "lib/app")
		for name, layer := range map[string]string{"web": "web", top[:12]: top} {
			r := a.run(t, "rmi", name)
			assert.Equal(t, exitNotFound, r.code, r.err)
			assert.Contains(t, r.err, "cowshed rm "+layer)
		}
		assert.Equal(t, before, a.state(t))
	})
	t.Run("rmi", func(t *testing.T) {
		r := a.run(t, "rmi", "app:1")
		assert.Zero(t, r.code)
		assert.Equal(t, "app:1\n", r.out)
		assert.Equal(t, fmt.Sprintf("kept of app:1: layer %s, needed by layer web; below it: %s, %s\n",
			top[:12], images[0].Layers[1][:12], images[0].Layers[0][:12]), r.err)
		a.ok(t, "rm", "web", top, images[0].Layers[0], images[0].Layers[1])
		assert.Empty(t, a.ok(t, "ls", "--names"))
	})
}

func (a at) layer(t *testing.T, name string) api.Layer {
	t.Helper()
	var layers []api.Layer
	a.json(t, &layers, "ls")
	i := slices.IndexFunc(layers, func(l api.Layer) bool { return l.Name == name })
	require.GreaterOrEqual(t, i, 0)
	return layers[i]
}

// Whatever is wrong is named, has its exit code, and changes nothing.
func TestBadInput(t *testing.T) {
	a := newStore(t)
	path, _ := writeImage(t, "app:1", 2)
	a.ok(t, "import", path)
	other, _ := writeImage(t, "app:1", 1)
	a.ok(t, "create", "web", "--parent", "app:1")
	dir := t.TempDir()
	file := func(name, data string) string {
		p := filepath.Join(dir, name)
		write(t, p, data)
		return p
	}
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	junk := file("junk", strings.Repeat("junk", 1000))
	cut := file("cut.tar", string(whole[:len(whole)/2]))
	empty := file("empty", "")
	chain := strings.Repeat("a", 64)

	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"create", "../escape"}, exitUsage, "../escape"},
		{[]string{"create", "a/b"}, exitUsage, "a/b"},
		{[]string{"create", "--", "-flag"}, exitUsage, "-flag"},
		{[]string{"create", ""}, exitOK, ""}, // stands for none
		{[]string{"create", strings.Repeat("x", 300)}, exitUsage, "300 bytes"},
		{[]string{"create", "nul\x00"}, exitUsage, "nul"},
		{[]string{"create", chain}, exitUsage, chain},
		{[]string{"create", "rootfs-partial-0123456789abcdef"}, exitUsage, "rootfs-partial"},
		{[]string{"create", "web"}, exitExists, "web"},
		{[]string{"create", "new", "--parent", "none"}, exitNotFound, "none"},
		{[]string{"create", "new", "--parent", "../x"}, exitUsage, "../x"},
		{[]string{"create", "new", "--size", "0"}, exitUsage, `"0"`},
		{[]string{"create", "new", "--root-style", "overlay"}, exitUsage, `"overlay"`},
		{[]string{"create", "new", "--root-style", "shared"}, exitUsage, "--parent"},
		{[]string{"create", "new", "--parent", "web", "--root-style", "Shared"}, exitUsage, `"Shared"`},
		{[]string{"create", "new", "--size", "-1G"}, exitUsage, "-1G"},
		{[]string{"create", "new", "--size", "1.5"}, exitUsage, "1.5"},
		{[]string{"create", "new", "--size", "99999999999T"}, exitUsage, "99999999999T"},
		{[]string{"create", "new", "--storage-opt", "btrfs.nonsense=1"}, exitUsage, "nonsense"},
		{[]string{"create", "new", "--storage-opt", "nonsense"}, exitUsage, "nonsense"},
		{[]string{"ls", "--driver", "aufs"}, exitUnsupported, "was removed from Docker"},
		{[]string{"rm", "none"}, exitNotFound, "none"},
		{[]string{"rm", "web", "none"}, exitNotFound, "none"},
		{[]string{"rm", "../subvolumes/web"}, exitUsage, "../subvolumes/web"},
		{[]string{"rm", "aaaaaa"}, exitNotFound, "aaaaaa"},
		{[]string{"limit", "none", "1G"}, exitNotFound, "none"},
		{[]string{"usage", "web", "none"}, exitNotFound, "none"},
		{[]string{"changes", "none"}, exitNotFound, "none"},
		{[]string{"changes", "web", "none"}, exitNotFound, "none"},
		{[]string{"diff", "web", "none"}, exitNotFound, "none"},
		{[]string{"diff", "web", "-o", filepath.Join(dir, "none/out")}, exitNotFound, "none/out"},
		{[]string{"diff", "web", "--compress", "lzma"}, exitUsage, "lzma"},
		{[]string{"diff", "web", "--compress", "gzip", "--level", "99", "-o", filepath.Join(dir, "x")}, exitUsage, "99"},
		{[]string{"apply", "none", empty}, exitNotFound, "none"},
		{[]string{"apply", "web", filepath.Join(dir, "none")}, exitNotFound, "none"},
		{[]string{"import", filepath.Join(dir, "none.tar")}, exitNotFound, "none.tar"},
		{[]string{"import", "oci:" + filepath.Join(dir, "none")}, exitNotFound, "none"},
		{[]string{"import", dir}, exitUsage, dir},
		{[]string{"import", junk}, exitFailure, junk},
		{[]string{"import", "rootfs:" + junk}, exitFailure, junk},
		{[]string{"import", empty}, exitFailure, empty},
		{[]string{"import", cut}, exitFailure, cut},
		{[]string{"import", other}, exitExists, "--replace"},
		{[]string{"import", path, "--name", "bad name"}, exitUsage, "bad name"},
		{[]string{"import", path, "--platform", "nonsense"}, exitUsage, "nonsense"},
		{[]string{"import", path + ":none"}, exitNotFound, "none"},
		{[]string{"import", "docker-archive:" + path + ":none:1"}, exitNotFound, "none:1"},
		{[]string{"export", "none", "oci:" + filepath.Join(dir, "new")}, exitNotFound, "none"},
		{[]string{"export", "web", "oci-archive:" + junk}, exitExists, junk},
		{[]string{"export", "web", "oci:" + dir}, exitExists, dir},
		{[]string{"export", "web", "oci:" + filepath.Join(dir, "new"), "--compress", "lzma"}, exitUsage, "lzma"},
		{[]string{"rmi", "none"}, exitNotFound, "none"},
		{[]string{"rmi", "app:1", "none"}, exitNotFound, "none"},
		{[]string{"rmi", "../x"}, exitUsage, "../x"},
		{[]string{"deinit"}, exitPrecondition, "layers"},
		{[]string{"deinit", "--yes"}, exitPrecondition, "layers"},
	} {
		t.Run(strings.ReplaceAll(strings.Join(test.args, " "), "/", "_"), func(t *testing.T) {
			if test.code == exitOK {
				a.ok(t, "rm", strings.TrimSpace(a.ok(t, test.args...)))
				return
			}
			before := a.state(t)
			r := a.run(t, test.args...)
			assert.Equal(t, test.code, r.code, r.err)
			assert.Contains(t, r.err, test.says)
			assert.Empty(t, r.out)
			assert.Equal(t, before, a.state(t))
			assert.NoFileExists(t, filepath.Join(dir, "x"))
			assert.NoDirExists(t, filepath.Join(dir, "new"))
		})
	}
	t.Run("SOURCE_DATE_EPOCH", func(t *testing.T) {
		t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
		r := a.run(t, "diff", "web")
		assert.Equal(t, exitUsage, r.code)
		assert.Contains(t, r.err, "yesterday")
	})
}

// Applying a bad tar fails and leaves a layer that can be removed, and nothing elsewhere.
func TestApplyBadTar(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "web")
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/"}))
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "out/cowshed-escaped", Size: 1}))
	_, err := tw.Write([]byte("x"))
	require.NoError(t, err)
	_ = at{root: a.root, stdin: bytes.NewReader(buf.Bytes())}.run(t, "apply", "web")
	assert.NoFileExists(t, "/cowshed-escaped")
	r := at{root: a.root, stdin: strings.NewReader(strings.Repeat("junk", 1000))}.run(t, "apply", "web")
	assert.Equal(t, exitFailure, r.code)
	assert.Contains(t, r.err, `"web"`)
	a.ok(t, "rm", "web")
}

func TestOddNames(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "base")
	a.ok(t, "create", "web", "--parent", "base")
	a.with(t, "web", func(dir string) {
		for _, name := range []string{"a\nb", "bad\xff", "esc\x1b[31m"} {
			write(t, filepath.Join(dir, name), "")
		}
	})
	assert.Equal(t, "A \"/a\\nb\"\nA \"/bad\\xff\"\nA \"/esc\\x1b[31m\"\n", a.ok(t, "changes", "web"))
	assert.Equal(t, "A /a\nb\x00A /bad\xff\x00A /esc\x1b[31m\x00", a.ok(t, "changes", "web", "-0"))
	var result struct{ Changes []api.Change }
	a.json(t, &result, "changes", "web")
	assert.Equal(t, "/a\nb", result.Changes[0].Path)
	assert.Nil(t, result.Changes[0].Bytes)
	assert.Equal(t, []byte("/bad\xff"), result.Changes[1].Bytes)
}

func TestInitEmbedded(t *testing.T) {
	testfs.Root(t)
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		testfs.Skip(t, "needs mkfs.btrfs")
	}
	parent := t.TempDir()
	a := at{root: filepath.Join(parent, "store")}
	t.Cleanup(func() {
		if _, err := os.Stat(a.root + ".img"); err == nil {
			a.ok(t, "deinit", "--yes")
		}
	})
	if a.run(t, "init").code == exitOK {
		testfs.Skip(t, "the temporary directory is on btrfs")
	}
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	assert.Empty(t, entries, "an init that cannot work makes nothing")

	var made initResult
	a.json(t, &made, "init", "--loop", "300M")
	assert.Equal(t, initResult{Root: a.root, Driver: "btrfs", Embedded: a.root + ".img", Done: made.Done}, made)
	assert.Len(t, made.Done, 3)
	a.json(t, &made, "init", "--loop", "300M")
	assert.Empty(t, made.Done, "all of it is there")
	a.ok(t, "create", "web")

	require.NoError(t, unix.Unmount(a.root, 0), "as after a start of the machine")
	assert.Equal(t, "web\n", a.ok(t, "ls", "--names"), "it is mounted by itself")
	assert.Contains(t, a.ok(t, "status"), a.root+".img")
	assert.Contains(t, a.ok(t, "doctor"), "is mounted on "+a.root)

	assert.Contains(t, a.ok(t, "init", "--loop", "400M"), "larger")
	assert.Contains(t, a.ok(t, "init", "--loop", "300M"), "keeps its size of up to 400MiB")
	assert.NotContains(t, a.ok(t, "init", "--loop", "400M"), "keeps")
	assert.NotContains(t, a.ok(t, "init"), "keeps")
	r := a.run(t, "deinit")
	assert.Equal(t, exitUsage, r.code)
	assert.Contains(t, r.err, "--yes")
	assert.FileExists(t, a.root+".img")

	target := t.TempDir()
	a.ok(t, "mount", "web", target)
	assert.Equal(t, exitPrecondition, a.run(t, "deinit", "--yes").code)
	a.ok(t, "unmount", target)
	a.ok(t, "deinit", "--yes")
	entries, err = os.ReadDir(parent)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestInitWhereNoneIsNeeded(t *testing.T) {
	a := at{root: filepath.Join(testfs.Btrfs(t), "deep/store")}
	out := a.ok(t, "init", "--loop", "300M")
	assert.Contains(t, out, "no embedded store is needed")
	assert.NoFileExists(t, a.root+".img")
	assert.NotContains(t, a.ok(t, "init"), "made", "the second time there is nothing to do")

	t.Run("deinit", func(t *testing.T) {
		path, _ := writeImage(t, "app:1", 1)
		a.ok(t, "import", path)
		assert.Equal(t, exitPrecondition, a.run(t, "deinit", "--yes").code)
		a.ok(t, "rmi", "app:1")
		foreign := filepath.Join(a.root, "btrfs/precious")
		write(t, foreign, "data")
		assert.Equal(t, exitPrecondition, a.run(t, "deinit", "--yes").code)
		assert.FileExists(t, foreign)
		require.NoError(t, os.Remove(foreign))
		a.ok(t, "init")
		a.ok(t, "deinit", "--yes")
		assert.NoDirExists(t, a.root)
		assert.DirExists(t, filepath.Dir(a.root))
	})
	t.Run("always", func(t *testing.T) {
		a.ok(t, "init", "--loop", "300M", "--always")
		assert.FileExists(t, a.root+".img")
		a.ok(t, "deinit", "--yes")
	})
}

func TestDoctor(t *testing.T) {
	a := newStore(t)
	findings := func(t *testing.T) map[string]finding {
		t.Helper()
		var list []finding
		r := a.run(t, "doctor", "--json")
		require.NoError(t, json.Unmarshal([]byte(r.out), &list), r.err)
		byCheck := make(map[string]finding)
		failed := false
		for _, f := range list {
			if f.Verdict != ok || byCheck[f.Check].Verdict == "" {
				byCheck[f.Check] = f
			}
			failed = failed || f.Verdict == fail
		}
		assert.Equal(t, failed, r.code == exitFailure)
		return byCheck
	}
	initial, err := detect.InitialPIDNamespace()
	require.NoError(t, err)
	for check, f := range findings(t) {
		if check == "processes" {
			assert.False(t, initial, f.Detail)
			continue
		}
		assert.Equal(t, ok, f.Verdict, "%s: %s", check, f.Detail)
	}

	t.Run("native diff is tried", func(t *testing.T) {
		a.ok(t, "create", "base")
		a.ok(t, "create", "web", "--parent", "base")
		assert.Contains(t, findings(t)["native diff"].Detail, "web")
	})
	t.Run("foreign things", func(t *testing.T) {
		foreign := filepath.Join(a.root, "btrfs/subvolumes/foreign")
		require.NoError(t, os.Mkdir(foreign, 0o755))
		staged := filepath.Join(a.root, "btrfs/staging/foreign")
		write(t, staged, "")
		got := findings(t)
		assert.Equal(t, warn, got["layers"].Verdict)
		assert.Contains(t, got["layers"].Detail, foreign)
		assert.Equal(t, warn, got["layout"].Verdict)
		assert.Contains(t, got["layout"].Detail, staged)
		require.NoError(t, os.Remove(foreign))
		require.NoError(t, os.Remove(staged))
	})
	t.Run("a copy of the store", func(t *testing.T) {
		copied := at{root: filepath.Join(filepath.Dir(a.root), "copied")}
		require.NoError(t, os.Mkdir(copied.root, 0o755))
		require.NoError(t, exec.Command("btrfs", "subvolume", "snapshot", filepath.Join(a.root, "btrfs"), filepath.Join(copied.root, "btrfs")).Run())
		out := copied.run(t, "doctor").out
		assert.Contains(t, out, "subvolumes/web is not a layer")
		assert.Contains(t, out, `"store/btrfs/subvolumes/web"`, "what it stands for")
		copied.ok(t, "create", "new")
		assert.Equal(t, "new\n", copied.ok(t, "ls", "--names"))
		copied.ok(t, "rm", "new")
	})
	t.Run("limits that are lost", func(t *testing.T) {
		a.ok(t, "create", "limited", "--size", "1G", "--read-write")
		assert.Equal(t, ok, findings(t)["quota"].Verdict)
		require.NoError(t, exec.Command("btrfs", "quota", "disable", a.root).Run())
		got := findings(t)["quota"]
		assert.Equal(t, fail, got.Verdict)
		assert.Contains(t, got.Detail, "limits are lost")
		assert.Contains(t, got.Advice, "cowshed limit")
		assert.Contains(t, a.ok(t, "status"), "limits are lost")
		a.ok(t, "limit", "limited", "1G")
		assert.Equal(t, ok, findings(t)["quota"].Verdict)
	})
	t.Run("an image without its layer", func(t *testing.T) {
		path, _ := writeImage(t, "app:1", 1)
		a.ok(t, "import", path)
		var images []imageInfo
		a.json(t, &images, "images")
		require.NoError(t, os.RemoveAll(filepath.Join(a.root, "btrfs/subvolumes", images[0].Layers[0])))
		assert.Equal(t, fail, findings(t)["images"].Verdict)
		a.ok(t, "rmi", "app:1")
	})
	t.Run("who holds the store", func(t *testing.T) {
		cmd, _, stdin := startImport(t, a)
		assert.Contains(t, findings(t)["locks"].Detail, "process")
		require.NoError(t, stdin.Close())
		assert.Error(t, testfs.Wait(t, cmd))
	})
	t.Run("no store", func(t *testing.T) {
		other := at{root: filepath.Join(t.TempDir(), "none")}
		r := other.run(t, "doctor")
		assert.Contains(t, r.out, "cowshed init")
		assert.NoDirExists(t, other.root)
	})
}

// startImport starts an import of a root filesystem that has begun to fill a layer and waits for more.
func startImport(t *testing.T, a at) (cmd *exec.Cmd, errOut *bytes.Buffer, stdin io.WriteCloser) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd = exec.Command(self, "--root", a.root, "import", "rootfs:-", "--name", "stopped")
	cmd.Env = append(os.Environ(), asProgramEnv+"=1")
	errOut = &bytes.Buffer{}
	cmd.Stderr = errOut
	stdin, err = cmd.StdinPipe()
	require.NoError(t, err)
	testfs.Start(t, cmd)
	tw := tar.NewWriter(stdin)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 1 << 20}))
	_, err = tw.Write(make([]byte, 1<<19))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		entries, err := os.ReadDir(filepath.Join(a.root, "btrfs/subvolumes"))
		return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return image.IsPartial(e.Name()) })
	}, testfs.Patience, 10*time.Millisecond)
	return cmd, errOut, stdin
}

func TestSignals(t *testing.T) {
	a := newStore(t)
	for signal, code := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130} {
		cmd, errOut, _ := startImport(t, a)
		require.NoError(t, cmd.Process.Signal(signal))
		_ = testfs.Wait(t, cmd) // the exit code is looked at
		assert.Equal(t, code, cmd.ProcessState.ExitCode(), errOut.String())
		assert.Contains(t, errOut.String(), "stopped by signal")
		assert.Empty(t, a.ok(t, "ls", "--names"), "nothing half-made is left")
		assert.Equal(t, "[]\n", a.ok(t, "images", "--json"))
	}
}

// A killed process cannot clean up; the next import does.
func TestKilled(t *testing.T) {
	a := newStore(t)
	cmd, _, _ := startImport(t, a)
	require.NoError(t, cmd.Process.Kill())
	_ = testfs.Wait(t, cmd) // it was killed
	partial := strings.TrimSpace(a.ok(t, "ls", "--names"))
	require.True(t, image.IsPartial(partial), partial)
	assert.Contains(t, a.ok(t, "doctor"), "cut off")
	path, _ := writeImage(t, "app:1", 1)
	a.ok(t, "import", path)
	assert.NotContains(t, a.ok(t, "ls", "--names"), partial)
}

func TestReaderGoesAway(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "web")
	a.with(t, "web", func(dir string) { write(t, filepath.Join(dir, "big"), strings.Repeat("x", 4<<20)) })
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "--root", a.root, "diff", "web")
	cmd.Env = append(os.Environ(), asProgramEnv+"=1")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	testfs.Start(t, cmd)
	_, err = io.ReadFull(out, make([]byte, 512))
	require.NoError(t, err)
	require.NoError(t, out.Close())
	_ = testfs.Wait(t, cmd) // the exit code is looked at
	assert.Equal(t, 141, cmd.ProcessState.ExitCode())
	assert.Empty(t, errOut.String())
}

func TestCompletion(t *testing.T) {
	a := newStore(t)
	path, _ := writeImage(t, "app:1", 1)
	a.ok(t, "import", path)
	a.ok(t, "create", "web")
	complete := func(args ...string) []string {
		var out, errOut bytes.Buffer
		code := run(t.Context(), slices.Concat([]string{"__complete", "--root", a.root}, args), strings.NewReader(""), &out, &errOut)
		require.Zero(t, code)
		return strings.Split(out.String(), "\n")
	}
	assert.Contains(t, complete("rm", ""), "web")
	assert.NotContains(t, complete("rm", ""), "app:1")
	assert.Contains(t, complete("changes", "w"), "web")
	assert.Contains(t, complete("create", "--parent", ""), "app:1")
	assert.Contains(t, complete("rmi", ""), "app:1")
	assert.Contains(t, complete("diff", "web", "--compress", ""), "zstd")
	assert.Subset(t, complete("create", "--root-style", ""), []string{"snapshot", "shared"})
	assert.Subset(t, complete("serve", "--root-style", ""), []string{"snapshot", "shared"})

	t.Run("nothing is cleaned up", func(t *testing.T) {
		left := filepath.Join(a.root, "btrfs/staging/left~over")
		require.NoError(t, exec.Command("btrfs", "subvolume", "create", left).Run())
		assert.Contains(t, complete("rm", ""), "web")
		assert.DirExists(t, left)
		a.ok(t, "ls")
		assert.NoDirExists(t, left, "as other commands do")
	})
	t.Run("nothing is mounted", func(t *testing.T) {
		embedded := at{root: filepath.Join(t.TempDir(), "store")}
		embedded.ok(t, "init", "--loop", "300M", "--always")
		t.Cleanup(func() { embedded.ok(t, "deinit", "--yes") })
		embedded.ok(t, "create", "hidden")
		require.NoError(t, unix.Unmount(embedded.root, 0))
		var out, errOut bytes.Buffer
		require.Zero(t, run(t.Context(), []string{"__complete", "--root", embedded.root, "rm", ""}, strings.NewReader(""), &out, &errOut))
		assert.NotContains(t, out.String(), "hidden")
		entries, err := os.ReadDir(embedded.root)
		require.NoError(t, err)
		assert.Empty(t, entries)
	})
}

// openTerminal returns both ends of a pseudo terminal.
func openTerminal(t *testing.T) (control, terminal *os.File) {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testfs.Skip(t, "needs pseudo terminals: %v", err)
	}
	t.Cleanup(func() { _ = control.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = terminal.Close() })
	require.NoError(t, unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 100}))
	return control, terminal
}

func TestTerminal(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "web")
	a.with(t, "web", func(dir string) { write(t, filepath.Join(dir, "file"), "data") })

	t.Run("a tar is not for it", func(t *testing.T) {
		_, terminal := openTerminal(t)
		for _, args := range [][]string{{"diff", "web"}, {"export", "web", "oci-archive:-"}} {
			var errOut bytes.Buffer
			code := run(t.Context(), append([]string{"--root", a.root}, args...), strings.NewReader(""), terminal, &errOut)
			assert.Equal(t, exitUsage, code)
			assert.Contains(t, errOut.String(), "terminal")
		}
	})
	t.Run("long work shows progress", func(t *testing.T) {
		for _, quiet := range []bool{false, true} {
			control, terminal := openTerminal(t)
			args := []string{"--root", a.root, "diff", "web"}
			if quiet {
				args = append(args, "--quiet")
			}
			var out bytes.Buffer
			code := run(t.Context(), args, strings.NewReader(""), &out, terminal)
			require.Zero(t, code)
			require.NoError(t, terminal.Close())
			shown, _ := io.ReadAll(control) // ends with an error, as terminals do
			assert.Equal(t, !quiet, strings.Contains(string(shown), "web"), "%q", shown)
			assert.NotEmpty(t, out.String())
		}
	})
}
