package sharedroot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// home is a directory on btrfs or ZFS in which a test has its volumes.
type home struct {
	t       testing.TB
	dir     string
	dataset string // "": btrfs
}

func newHome(t testing.TB, dir string) home {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	return home{t: t, dir: dir}
}

func newZFSHome(t testing.TB) home {
	t.Helper()
	dataset, dir := testfs.ZFS(t)
	h := home{t: t, dir: dir, dataset: dataset}
	h.zfs("set", "acltype=posixacl", "xattr=sa", dataset)
	return h
}

func (h home) zfs(args ...string) {
	h.t.Helper()
	out, err := exec.Command("zfs", args...).CombinedOutput()
	require.NoError(h.t, err, "zfs %v: %s", args, out)
}

func (h home) path(name string) string { return filepath.Join(h.dir, name) }

func (h home) open(name string) *os.File {
	h.t.Helper()
	f, err := os.Open(h.path(name))
	require.NoError(h.t, err)
	h.t.Cleanup(func() { f.Close() })
	return f
}

// create makes an empty volume.
func (h home) create(name string) {
	h.t.Helper()
	if h.dataset != "" {
		h.zfs("create", h.dataset+"/"+name)
		return
	}
	require.NoError(h.t, btrfsctl.CreateSubvolume(int(h.open(".").Fd()), name, nil))
}

// clone makes a volume from another.
func (h home) clone(name, from string) {
	h.t.Helper()
	if h.dataset != "" {
		snapshot := h.dataset + "/" + from + "@" + name
		h.zfs("snapshot", snapshot)
		h.zfs("clone", snapshot, h.dataset+"/"+name)
		return
	}
	source := h.open(from)
	defer source.Close()
	dir := h.open(".")
	defer dir.Close()
	require.NoError(h.t, btrfsctl.Snapshot(int(dir.Fd()), name, int(source.Fd()), false, nil))
}

func (h home) seal(name string) {
	h.t.Helper()
	if h.dataset != "" {
		h.zfs("set", "readonly=on", h.dataset+"/"+name)
		return
	}
	require.NoError(h.t, btrfsctl.SetReadOnly(int(h.open(name).Fd()), true))
}

// prepare makes a shared volume from a sealed one.
func (h home) prepare(name, lower string) {
	h.t.Helper()
	h.clone(name, lower)
	require.NoError(h.t, prepare(h.open(name), lower))
}

// fold folds a volume.
func (h home) fold(name string) {
	h.t.Helper()
	require.NoError(h.t, fold(h.t.Context(), h.open(name), nil))
	h.isPlain(name)
}

// isPlain checks that nothing is left of a shared root.
func (h home) isPlain(name string) {
	h.t.Helper()
	s, _, err := inspect(h.open(name))
	require.NoError(h.t, err)
	require.Equal(h.t, stateNone, s)
	require.NoDirExists(h.t, h.path(name)+"/.cowshed")
}

// mount mounts a shared volume at "view", and returns the way to unmount it.
func (h home) mount(name, lower string) (view string, unmount func()) {
	h.t.Helper()
	own := h.path(name) + "/.cowshed/"
	return h.overlay(h.path(lower), own+upperName, own+workName)
}

// view mounts a shared volume read-only.
func (h home) view(name, lower string) (view string, unmount func()) {
	h.t.Helper()
	return h.overlay(h.path(lower), h.path(name)+"/.cowshed/"+upperName, "")
}

func (h home) overlay(lower, upper, work string) (view string, unmount func()) {
	h.t.Helper()
	has, err := probe(h.dir)
	require.NoError(h.t, err)
	options, err := mountOptions(lower, upper, work, has)
	require.NoError(h.t, err)
	view, err = os.MkdirTemp(h.dir, "view-")
	require.NoError(h.t, err)
	require.NoError(h.t, unix.Mount("overlay", view, "overlay", 0, strings.Join(options, ",")))
	unmount = sync.OnceFunc(func() {
		require.NoError(h.t, unix.Unmount(view, 0))
		require.NoError(h.t, os.Remove(view))
	})
	h.t.Cleanup(unmount)
	return view, unmount
}
