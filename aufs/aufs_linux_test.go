package aufs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "aufs")
	_, err := Init(dir, nil)
	require.ErrorIs(t, err, ErrAufsNotSupported)
	assert.True(t, graphdriver.IsDriverNotSupported(err))
	assert.Equal(t, "AUFS was not found in /proc/filesystems", err.Error())
	assert.NoDirExists(t, dir)
}

func TestSupported(t *testing.T) {
	for list, want := range map[string]error{
		"nodev\tproc\n\text4\nnodev\taufs\n": nil,
		"\taufs\n":                           nil,
		"nodev\taufs2\naufs nodev\n":         ErrAufsNotSupported,
		"":                                   ErrAufsNotSupported,
	} {
		file := filepath.Join(t.TempDir(), "filesystems")
		require.NoError(t, os.WriteFile(file, []byte(list), 0o600))
		assert.Equal(t, want, supported(file), "%q", list)
	}
	assert.ErrorIs(t, supported(filepath.Join(t.TempDir(), "none")), ErrAufsNotSupported)
}

func TestSurface(t *testing.T) {
	assert.Equal(t, syscall.MS_REMOUNT, MsRemount)
	assert.Error(t, Unmount(t.TempDir()), "nothing is mounted there")
}

func TestUnmount(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	require.NoError(t, Unmount(dir))
	assert.ErrorIs(t, Unmount(dir), unix.EINVAL)
}

func newDriver(t *testing.T) *Driver {
	d, err := open(filepath.Join(t.TempDir(), "aufs"))
	require.NoError(t, err)
	return d
}

func TestDriver(t *testing.T) {
	testfs.Root(t)
	d := newDriver(t)
	assert.Equal(t, "aufs", d.String())
	require.NoError(t, d.Create("base", "", nil))
	require.NoError(t, d.CreateReadWrite("top", "base", nil))
	require.NoError(t, d.Create("high", "top", nil))
	list, err := os.ReadFile(d.layers("high"))
	require.NoError(t, err)
	assert.Equal(t, "top\nbase\n", string(list))
	assert.Equal(t, [][2]string{{"Root Dir", d.root}, {"Dirs", "3"}}, d.Status())

	require.ErrorIs(t, d.Create("base", "", nil), errdefs.ErrAlreadyExists)
	require.ErrorIs(t, d.Create("x", "none", nil), errdefs.ErrNotFound)
	require.ErrorIs(t, d.Create("x", "", &graphdriver.CreateOpts{StorageOpt: map[string]string{"size": "1G"}}), errdefs.ErrInvalidArgument)
	for _, id := range []string{"", "..", "a/b", "../diff"} {
		assert.ErrorIs(t, d.Create(id, "", nil), errdefs.ErrInvalidArgument)
		assert.ErrorIs(t, d.Remove(id), errdefs.ErrInvalidArgument)
		assert.ErrorIs(t, d.Put(id), errdefs.ErrInvalidArgument)
		_, err := d.Get(id, "")
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		assert.False(t, d.Exists(id))
	}
	assert.False(t, d.Exists("x"))

	// A layer without parents needs no aufs.
	dir, err := d.Get("base", "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600))
	require.ErrorIs(t, d.Remove("base"), fault.ErrInUse)
	require.NoError(t, d.Put("base"))
	require.NoError(t, d.Put("base"), "without a Get")
	changes, err := d.Changes("base", "")
	require.NoError(t, err)
	require.Len(t, changes, 1)
	size, err := d.DiffSize("base", "")
	require.NoError(t, err)
	assert.EqualValues(t, 4, size)
	diff, err := d.Diff("base", "")
	require.NoError(t, err)
	var tar bytes.Buffer
	_, err = tar.ReadFrom(diff)
	require.NoError(t, err)
	require.NoError(t, diff.Close())
	require.NoError(t, d.Create("copy", "", nil))
	size, err = d.ApplyDiff("copy", "", &tar)
	require.NoError(t, err)
	assert.EqualValues(t, 4, size)
	metadata, err := d.GetMetadata("base")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"DiffDir": d.diff("base")}, metadata)

	_, err = d.Get("none", "")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, d.Remove("high"))
	require.NoError(t, d.Remove("high"), "an absent layer")
	assert.NoDirExists(t, d.diff("high"))
	require.NoError(t, d.Cleanup())
}

// TestNoAufs: a layer with parents cannot be mounted, and is not held then.
func TestNoAufs(t *testing.T) {
	testfs.Root(t)
	d := newDriver(t)
	require.NoError(t, d.Create("base", "", nil))
	require.NoError(t, d.Create("top", "base", nil))
	_, err := d.Get("top", "")
	require.ErrorIs(t, err, ErrAufsNotSupported)
	require.NoError(t, d.Remove("top"))
}

func TestBranchOptions(t *testing.T) {
	first, rest := branchOptions([]string{"/rw", "/a", "/b"})
	assert.Equal(t, "br:/rw=rw:/a=ro+wh:/b=ro+wh,dio,xino=/dev/shm/aufs.xino", first)
	assert.Empty(t, rest)

	branches := []string{"/rw"}
	for i := range 100 {
		branches = append(branches, fmt.Sprintf("/%d%s", i, strings.Repeat("x", 100)))
	}
	first, rest = branchOptions(branches)
	assert.Less(t, len(first), 4096)
	var all []string
	for branch := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(first, "br:"), ",dio,xino=/dev/shm/aufs.xino"), ":") {
		path, _, _ := strings.Cut(branch, "=")
		all = append(all, path)
	}
	assert.Equal(t, branches, append(all, rest...))
}

// oldRoot makes a root of Docker 0.6 with two images and a container.
func oldRoot(t *testing.T, dir string) {
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	record := func(name string, fields map[string]any) {
		data, err := json.Marshal(fields)
		require.NoError(t, err)
		write(name, string(data))
	}
	record("graph/base/json", map[string]any{"id": "base"})
	write("graph/base/layer/old", "1")
	write("graph/base/layer/kept", "2")
	record("graph/app/json", map[string]any{"id": "app", "parent": "base"})
	write("graph/app/layer/.wh.old", "")
	write("graph/app/layer/app", "3")
	record("containers/web/config.json", map[string]any{"ID": "web", "Image": "app"})
	write("containers/web/rw/written", "4")
	write("repositories", "{}")
}

// TestMigrateAufs: the driver gets the directories of changes themselves.
func TestMigrateAufs(t *testing.T) {
	testfs.Root(t)
	d := newDriver(t)
	dir := t.TempDir()
	oldRoot(t, dir)
	require.NoError(t, d.Migrate(dir, nil))
	for id, below := range map[string]string{"base": "", "app": "base\n", "web-init": "app\nbase\n", "web": "web-init\napp\nbase\n"} {
		list, err := os.ReadFile(d.layers(id))
		require.NoError(t, err)
		assert.Equal(t, below, string(list), id)
	}
	assert.FileExists(t, filepath.Join(d.diff("app"), ".wh.old"))
	assert.FileExists(t, filepath.Join(d.diff("web"), "written"))
	assert.NoDirExists(t, filepath.Join(dir, "graph/app/layer"))
	assert.FileExists(t, filepath.Join(dir, "repositories-aufs"))
	require.NoError(t, d.Migrate(dir, nil), "again")

	// Without aufs, the layer that setupInit is for cannot be mounted. The images come along.
	d, dir = newDriver(t), t.TempDir()
	oldRoot(t, dir)
	err := d.Migrate(dir, func(string) error { return nil })
	require.ErrorIs(t, err, ErrAufsNotSupported)
	assert.True(t, d.Exists("app"))
	assert.False(t, d.Exists("web"))
	assert.FileExists(t, filepath.Join(dir, "containers/web/rw/written"))
	require.NoError(t, d.Migrate(dir, nil))
	assert.FileExists(t, filepath.Join(d.diff("web"), "written"))
}

// TestMigrateMounted: a symbolic link leads to a directory that is mounted. Removing the layer leaves the directory.
func TestMigrateMounted(t *testing.T) {
	testfs.Root(t)
	d := newDriver(t)
	dir := t.TempDir()
	oldRoot(t, dir)
	layer := filepath.Join(dir, "graph/app/layer")
	require.NoError(t, unix.Mount(layer, layer, "", unix.MS_BIND, ""))
	defer unix.Unmount(layer, unix.MNT_DETACH)
	require.NoError(t, d.Migrate(dir, nil))
	leads, err := os.Readlink(d.diff("app"))
	require.NoError(t, err)
	assert.Equal(t, layer, leads)
	require.NoError(t, d.Remove("app"))
	assert.FileExists(t, filepath.Join(layer, "app"))
}

// TestMigrateBtrfs: a driver of whole trees gets the merged trees.
func TestMigrateBtrfs(t *testing.T) {
	testfs.Root(t)
	mnt := testfs.Btrfs(t)
	d, err := graphdriver.New("btrfs", graphdriver.Options{Root: filepath.Join(mnt, "driver")})
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Cleanup()) }()
	dir := filepath.Join(mnt, "docker")
	oldRoot(t, dir)
	require.NoError(t, Migrate(d, dir, func(path string) error {
		return os.WriteFile(filepath.Join(path, "init"), nil, 0o644)
	}))
	tree, err := d.Get("web", "")
	require.NoError(t, err)
	entries, err := os.ReadDir(tree)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	assert.Equal(t, []string{"app", "init", "kept", "written"}, names)
	require.NoError(t, d.Put("web"))
}
