//go:build linux

package graphtest

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

var diffPathTests = []Test{
	{"DiffPath", diffPath},
	{"DiffPathErrors", diffPathErrors},
	{"CustomImages", customImages},
}

// diffPather returns the driver as a DiffPathDriver, or nil if it does not declare to be one.
func (c Config) diffPather(t testing.TB, d graphdriver.Driver) graphdriver.DiffPathDriver {
	t.Helper()
	pather, ok := d.(graphdriver.DiffPathDriver)
	require.Equal(t, c.DiffPath, ok, "the driver is a DiffPathDriver exactly if it declares so")
	return pather
}

// withOverlay is the tree that an overlay shows, with upper in the form of DiffPath on s. Hard links are forgotten,
// since upper breaks them.
func (s snapshot) withOverlay(upper snapshot) snapshot {
	merged := maps.Clone(s)
	isDir := func(e entry) bool { return e.mode&unix.S_IFMT == unix.S_IFDIR }
	for path, e := range upper {
		below, there := merged[path]
		if there && !(isDir(below) && isDir(e)) {
			maps.DeleteFunc(merged, func(p string, _ entry) bool { return strings.HasPrefix(p, path+"/") })
		}
	}
	for path, e := range upper {
		if e.mode&unix.S_IFMT == unix.S_IFCHR && e.rdev == 0 {
			delete(merged, path)
		} else {
			merged[path] = e
		}
	}
	return merged.unlinked()
}

func (s snapshot) unlinked() snapshot {
	return s.without(func(e *entry) { e.links, e.first = 0, "" })
}

// diffPath: the directory with the parent below it is the layer at one moment, and nothing else is in it.
func diffPath(t testing.TB, c Config) {
	l := c.open(t)
	d := c.diffPather(t, l.Driver)
	if d == nil {
		return
	}
	base := l.filled("", func(w tree) {
		someContent(w)
		w.mkdir("dir/inner")
		w.file("dir/inner/file", "x")
		w.file("becomes a directory", "x")
		w.mkdir("odd")
		for _, name := range oddNames {
			w.file("odd/"+name, "x")
		}
	})
	id := l.filled(base, func(w tree) {
		w = w.at(editTime)
		w.chmod(".", 0o711)
		w.file("a file", "changed")
		w.file("new", "new")
		w.link("new", "a subdir/linked")
		w.symlink("new", "link")
		w.mknod("null", unix.S_IFCHR|0o666, 1, 3)
		w.mknod("fifo", unix.S_IFIFO|0o600, 0, 0)
		w.mknod("socket", unix.S_IFSOCK|0o600, 0, 0)
		w.setxattr("new", "user.mine", []byte("1"))
		w.remove("etc/deep")
		w.remove("becomes a directory")
		w.mkdir("becomes a directory/now")
		w.remove("dir")
		w.file("dir", "not any more")
		for i, name := range oddNames {
			if i%2 == 0 {
				w.remove("odd/" + name)
			} else {
				w.file("odd/"+name, "changed")
			}
		}
		w.sparse("sparse", 1<<23, 0, 1<<22)
	})
	want, changes := l.scan(id), l.changes(id, base)

	testfs.CheckLeaks(t)
	path, release, err := d.DiffPath(id)
	require.NoError(t, err)
	assert.True(t, filepath.IsAbs(path), path)
	upper := scan(t, path)
	assert.Len(t, upper, len(changes)+1, "the changes and the root are there, and nothing else")
	assertSameTree(t, want.unlinked(), l.scan(base).withOverlay(upper), "the directory on the parent")
	assert.Equal(t, "a subdir/linked", upper["new"].first, "hard links stay")
	assert.Less(t, upper["sparse"].allocated, int64(1<<20), "holes stay")
	assert.ErrorIs(t, os.WriteFile(path+"/x", nil, 0o600), unix.EROFS)
	assert.ErrorIs(t, os.Remove(path+"/new"), unix.EROFS)

	other, releaseOther, err := d.DiffPath(id)
	require.NoError(t, err, "twice at once")
	assert.NotEqual(t, path, other)
	require.NoError(t, releaseOther())
	l.edit(id, func(w tree) {
		w.remove("new")
		w.file("a file", "changed again")
	})
	assertSameTree(t, upper, scan(t, path), "the directory after a change of the layer")
	require.NoError(t, release())
	require.NoError(t, release(), "releasing twice does nothing")
	assert.NoDirExists(t, path)

	whole, release, err := d.DiffPath(base)
	require.NoError(t, err)
	assertSameTree(t, l.scan(base), scan(t, whole), "a layer without a parent")
	require.NoError(t, release())
}

func diffPathErrors(t testing.TB, c Config) {
	l := c.open(t)
	d := c.diffPather(t, l.Driver)
	if d == nil {
		return
	}
	_, _, err := d.DiffPath(newID())
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	for _, id := range []string{"", "..", "a/b"} {
		_, _, err := d.DiffPath(id)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", id)
	}
}

// customImages: the list of images is the caller's, and tells them apart.
func customImages(t testing.TB, c Config) {
	l := c.open(t)
	d, ok := l.Driver.(graphdriver.CustomImageDriver)
	require.Equal(t, c.CustomImages, ok, "the driver is a CustomImageDriver exactly if it declares so")
	if !ok {
		return
	}
	infos, err := d.GetCustomImageInfos()
	require.NoError(t, err)
	assert.NotNil(t, infos)
	seen := make(map[string]bool)
	for _, info := range infos {
		assert.NotEmpty(t, info.ID)
		assert.NotEmpty(t, info.Name)
		assert.False(t, seen[info.ID], "%s is listed twice", info.ID)
		seen[info.ID] = true
	}
	clear(infos)
	again, err := d.GetCustomImageInfos()
	require.NoError(t, err)
	for _, info := range again {
		assert.NotEmpty(t, info.ID, "the list is the caller's")
	}
}
