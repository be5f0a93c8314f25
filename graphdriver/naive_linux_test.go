package graphdriver

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/go-archive/compression"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// dirs is a ProtoDriver whose layers are directories, made by the test, and that counts their holders. Package
// graphtest runs the conformance suite over a NaiveDiffDriver. The tests here are about its calls of the driver
// below.
type dirs struct {
	ProtoDriver
	root   string
	putErr error

	mu   sync.Mutex
	held map[string]int
}

func newDirs(t *testing.T, layers map[string]map[string]string) *dirs {
	t.Helper()
	d := &dirs{root: t.TempDir(), held: make(map[string]int)}
	for id, files := range layers {
		require.NoError(t, os.Mkdir(filepath.Join(d.root, id), 0o755))
		for name, content := range files {
			require.NoError(t, os.WriteFile(filepath.Join(d.root, id, name), []byte(content), 0o644))
		}
	}
	return d
}

func (d *dirs) Get(id, _ string) (string, error) {
	dir := filepath.Join(d.root, id)
	if _, err := os.Stat(dir); err != nil {
		return "", errors.Join(errdefs.ErrNotFound, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[id]++
	return dir, nil
}

func (d *dirs) Put(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[id]--
	return d.putErr
}

// assertReleased fails the test unless every Get has had its Put.
func (d *dirs) assertReleased(t *testing.T) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, n := range d.held {
		assert.Zero(t, n, "layer %s is held", id)
	}
}

func twoLayers(t *testing.T) *dirs {
	return newDirs(t, map[string]map[string]string{
		"base": {"kept": "kept", "gone": "gone"},
		"top":  {"kept": "kept, and longer", "new": strings.Repeat("n", 1<<20)},
		"copy": {"kept": "kept", "gone": "gone"},
	})
}

func TestNaiveReleasesLayers(t *testing.T) {
	testfs.CheckLeaks(t)
	proto := twoLayers(t)
	d := NewNaiveDiffDriver(proto, user.IdentityMapping{})

	changes, err := d.Changes("top", "base")
	require.NoError(t, err)
	assert.Equal(t, []archive.Change{
		{Path: "/gone", Kind: archive.ChangeDelete}, {Path: "/kept", Kind: archive.ChangeModify}, {Path: "/new", Kind: archive.ChangeAdd},
	}, changes)
	proto.assertReleased(t)

	size, err := d.DiffSize("top", "base")
	require.NoError(t, err)
	assert.Equal(t, int64(len("kept, and longer")+1<<20), size)
	proto.assertReleased(t)

	r, err := d.Diff("top", "base")
	require.NoError(t, err)
	layer, err := io.ReadAll(r)
	require.NoError(t, err)
	proto.assertReleased(t)
	require.NoError(t, r.Close())

	applied, err := d.ApplyDiff("copy", "base", bytes.NewReader(layer))
	require.NoError(t, err)
	assert.Equal(t, size, applied)
	proto.assertReleased(t)
	content, err := os.ReadFile(filepath.Join(proto.root, "copy", "kept"))
	require.NoError(t, err)
	assert.Equal(t, "kept, and longer", string(content))
	assert.NoFileExists(t, filepath.Join(proto.root, "copy", "gone"))
}

func TestNaiveDiffClosedEarly(t *testing.T) {
	testfs.CheckLeaks(t)
	proto := twoLayers(t)
	d := NewNaiveDiffDriver(proto, user.IdentityMapping{})
	for _, n := range []int{0, 1, 1000, 1 << 19} {
		r, err := d.Diff("top", "base")
		require.NoError(t, err)
		_, err = io.ReadFull(r, make([]byte, n))
		require.NoError(t, err)
		require.NoError(t, r.Close())
		proto.assertReleased(t)
		_, err = r.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.ErrClosedPipe)
	}
}

func TestNaiveErrors(t *testing.T) {
	testfs.CheckLeaks(t)
	proto := twoLayers(t)
	d := NewNaiveDiffDriver(proto, user.IdentityMapping{})
	for _, ids := range [][2]string{{"absent", ""}, {"absent", "base"}, {"top", "absent"}} {
		_, err := d.Diff(ids[0], ids[1])
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		assert.ErrorContains(t, err, "absent")
		_, err = d.Changes(ids[0], ids[1])
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = d.DiffSize(ids[0], ids[1])
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
	_, err := d.ApplyDiff("absent", "", strings.NewReader(""))
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	broken := errors.New("broken")
	_, err = d.ApplyDiff("copy", "base", iotest.ErrReader(broken))
	require.ErrorIs(t, err, broken)
	proto.assertReleased(t)
}

// TestNaiveDiffErrorReachesReader: a file that cannot be written to the tar is no end of the tar.
func TestNaiveDiffErrorReachesReader(t *testing.T) {
	testfs.CheckLeaks(t)
	proto := newDirs(t, map[string]map[string]string{"top": {"a": "x", ".wh.b": "a name that no layer can hold"}})
	r, err := NewNaiveDiffDriver(proto, user.IdentityMapping{}).Diff("top", "")
	require.NoError(t, err)
	_, err = io.ReadAll(r)
	require.Error(t, err)
	assert.ErrorContains(t, err, `layer "top"`)
	require.NoError(t, r.Close())
	proto.assertReleased(t)
}

func TestNaivePutErrorReachesCaller(t *testing.T) {
	testfs.CheckLeaks(t)
	proto := twoLayers(t)
	proto.putErr = errors.New("cannot unmount")
	d := NewNaiveDiffDriver(proto, user.IdentityMapping{})

	_, err := d.Changes("top", "base")
	require.ErrorIs(t, err, proto.putErr)
	_, err = d.Diff("top", "base")
	require.ErrorIs(t, err, proto.putErr, "the parent cannot be put")
	r, err := d.Diff("top", "")
	require.NoError(t, err)
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, proto.putErr)
	require.NoError(t, r.Close())
	proto.assertReleased(t)
}

func TestNaiveIDMap(t *testing.T) {
	uid, gid := os.Getuid(), os.Getgid()
	idMap := user.IdentityMapping{
		UIDMaps: []user.IDMap{{ID: 5, ParentID: int64(uid), Count: 1}},
		GIDMaps: []user.IDMap{{ID: 6, ParentID: int64(gid), Count: 1}},
	}
	proto := newDirs(t, map[string]map[string]string{"top": {"f": "x"}, "copy": nil})
	d := NewNaiveDiffDriver(proto, idMap)
	r, err := d.Diff("top", "")
	require.NoError(t, err)
	layer, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	h, err := tar.NewReader(bytes.NewReader(layer)).Next()
	require.NoError(t, err)
	assert.Equal(t, [2]int{5, 6}, [2]int{h.Uid, h.Gid})

	_, err = d.ApplyDiff("copy", "", bytes.NewReader(layer))
	require.NoError(t, err, "5:6 is mapped back to the only owner that this process may give")
	assert.FileExists(t, filepath.Join(proto.root, "copy", "f"))
}

func TestApplyUncompressedLayerOptions(t *testing.T) {
	dest := t.TempDir()
	_, err := ApplyUncompressedLayer(dest, strings.NewReader(""), nil)
	require.NoError(t, err)

	for name, options := range map[string]archive.TarOptions{
		"IncludeFiles":         {IncludeFiles: []string{"a"}},
		"ExcludePatterns":      {ExcludePatterns: []string{"a"}},
		"Compression":          {Compression: compression.Gzip},
		"NoLchown":             {NoLchown: true},
		"ChownOpts":            {ChownOpts: &archive.ChownOpts{}},
		"IncludeSourceDir":     {IncludeSourceDir: true},
		"WhiteoutFormat":       {WhiteoutFormat: archive.OverlayWhiteoutFormat},
		"NoOverwriteDirNonDir": {NoOverwriteDirNonDir: true},
		"RebaseNames":          {RebaseNames: map[string]string{"a": "b"}},
		"InUserNS":             {InUserNS: true},
	} {
		_, err := ApplyUncompressedLayer(dest, iotest.ErrReader(errors.New("read from")), &options)
		require.ErrorIs(t, err, errdefs.ErrNotImplemented, name)
		assert.ErrorContains(t, err, name)
	}
}
