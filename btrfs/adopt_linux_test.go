package btrfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
)

// foreign is a directory in which another program keeps subvolumes.
type foreign struct {
	t   *testing.T
	dir *os.File
}

func newForeign(t *testing.T, mnt string) foreign {
	t.Helper()
	path := filepath.Join(mnt, "foreign")
	require.NoError(t, os.Mkdir(path, 0o700))
	dir, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return foreign{t, dir}
}

func (f foreign) path(name string) string { return filepath.Join(f.dir.Name(), name) }

// create makes a subvolume, of another unless that is "".
func (f foreign) create(name, from string) {
	f.t.Helper()
	if from == "" {
		require.NoError(f.t, btrfsctl.CreateSubvolume(int(f.dir.Fd()), name, nil))
		return
	}
	source, err := os.Open(f.path(from))
	require.NoError(f.t, err)
	defer source.Close()
	require.NoError(f.t, btrfsctl.Snapshot(int(f.dir.Fd()), name, int(source.Fd()), false, nil))
}

func (f foreign) write(path, content string) {
	f.t.Helper()
	require.NoError(f.t, os.MkdirAll(filepath.Dir(f.path(path)), 0o755))
	require.NoError(f.t, os.WriteFile(f.path(path), []byte(content), 0o644))
}

func (f foreign) destroy(name string) {
	f.t.Helper()
	require.NoError(f.t, btrfsctl.DestroySubvolume(int(f.dir.Fd()), name))
}

func assertParent(t *testing.T, b *Backend, name, parent string) {
	t.Helper()
	v, err := b.Stat(t.Context(), name)
	require.NoError(t, err)
	assert.Equal(t, parent, v.Parent, "parent of %s", name)
}

// assertNative compares two volumes by the filesystem's hints and by walking, and returns the changed paths.
func assertNative(t *testing.T, b *Backend, name, parent string) (paths []string) {
	t.Helper()
	comparer := cowcommon.NewComparer(b, user.IdentityMapping{}, b.log)
	native, err := comparer.Compare(t.Context(), name, parent, cowcommon.Auto)
	require.NoError(t, err)
	assert.True(t, native.Native, "%s since %s: %s", name, parent, native.Reason)
	walked, err := comparer.Compare(t.Context(), name, parent, cowcommon.Walk)
	require.NoError(t, err)
	assert.Equal(t, walked.Changes, native.Changes)
	for _, c := range native.Changes {
		paths = append(paths, c.String())
	}
	require.NoError(t, native.Close())
	require.NoError(t, walked.Close())
	return paths
}

// TestAdopt adopts a chain of foreign subvolumes, which are then destroyed. The volumes know their parents, and are
// compared natively.
func TestAdopt(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		b, ctx := open(t, mnt, Options{}), t.Context()
		f := newForeign(t, mnt)
		f.create("1", "")
		f.write("1/dir/base", "base")
		f.write("1/dir/gone", "gone")
		f.create("2", "1")
		f.write("2/dir/two", "two")
		require.NoError(t, os.Remove(f.path("2/dir/gone")))
		f.create("3", "2")
		f.write("3/three", "three")
		require.NoError(t, os.Rename(f.path("3/dir"), f.path("3/moved")))
		limit := quota.Limit{Bytes: 64 * mib}
		require.NoError(t, b.Adopt(ctx, "a", "", f.path("1"), cowcommon.VolumeOptions{}))
		require.NoError(t, b.Adopt(ctx, "b", "a", f.path("2"), cowcommon.VolumeOptions{}))
		require.NoError(t, b.Adopt(ctx, "c", "b", f.path("3"), cowcommon.VolumeOptions{Limit: limit}))
		for name, source := range map[string]string{"a": "1", "b": "2", "c": "3"} {
			treecmp.Equal(t, f.path(source), tree(t, b, name), treecmp.Options{
				Roots: true, SkipXattr: func(_, name string) bool { return name == parentXattr },
			})
			require.NoError(t, b.Unmount(ctx, name))
		}

		check := func() {
			t.Helper()
			assertParent(t, b, "a", "")
			assertParent(t, b, "b", "a")
			assertParent(t, b, "c", "b")
			for name, sealed := range map[string]bool{"a": true, "b": true, "c": false} {
				v, err := b.Stat(ctx, name)
				require.NoError(t, err)
				assert.Equal(t, sealed, v.Sealed, name)
			}
			assert.Equal(t, []string{"C /dir", "D /dir/gone", "A /dir/two"}, assertNative(t, b, "b", "a"))
			assert.Equal(t, []string{"D /dir", "A /moved", "A /moved/base", "A /moved/two", "A /three"}, assertNative(t, b, "c", "b"))
			assert.Contains(t, assertNative(t, b, "c", "a"), "A /three")
			assert.Contains(t, assertNative(t, b, "a", "c"), "A /dir/gone", "the other way round")
		}
		check()
		for _, name := range []string{"3", "2", "1"} {
			f.destroy(name)
		}
		check()

		v, err := b.Stat(ctx, "c")
		require.NoError(t, err)
		assert.Equal(t, limit, v.Limit)
		dir := tree(t, b, "c")
		require.NoError(t, writeBytes(dir+"/fits", 50*mib))
		require.ErrorIs(t, writeBytes(dir+"/too-much", 20*mib), unix.EDQUOT)
		require.NoError(t, os.Remove(dir+"/too-much"))
		require.NoError(t, os.Remove(dir+"/fits"))
		require.NoError(t, b.Unmount(ctx, "c"))

		// A clone has the record of its source, which is not its own.
		require.NoError(t, b.Clone(ctx, "d", "c", cowcommon.VolumeOptions{}))
		put(t, b, "d", "four", "four")
		assertParent(t, b, "d", "c")
		assert.Equal(t, []string{"A /four"}, assertNative(t, b, "d", "c"))
		assertNative(t, b, "d", "a")
		require.NoError(t, b.Rename(ctx, "b", "renamed"))
		assertParent(t, b, "c", "renamed")
		require.NoError(t, b.Remove(ctx, "c"))
		assertParent(t, b, "d", "")
		require.NoError(t, b.Close())

		b = open(t, mnt, Options{})
		assertParent(t, b, "renamed", "a")
		assertClean(t, b, "a", "d", "renamed")
	})
}

// TestAdoptAgain: the record of a home is not taken for that of another.
func TestAdoptAgain(t *testing.T) {
	mnt, ctx := testfs.Btrfs(t), t.Context()
	b := open(t, mnt, Options{})
	f := newForeign(t, mnt)
	f.create("1", "")
	require.NoError(t, b.Adopt(ctx, "a", "", f.path("1"), cowcommon.VolumeOptions{}))
	require.NoError(t, b.Adopt(ctx, "b", "a", f.path("1"), cowcommon.VolumeOptions{}))
	other, err := Open(ctx, filepath.Join(mnt, "other"), Options{})
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, other.Adopt(ctx, "b", "", filepath.Join(b.home, subvolumesName, "b"), cowcommon.VolumeOptions{}))
	assertParent(t, other, "b", "")
	require.NoError(t, other.Adopt(ctx, "sealed", "", filepath.Join(b.home, subvolumesName, "a"), cowcommon.VolumeOptions{}))
	put(t, other, "sealed", "file", "a copy of what is sealed is writable")
	dir := tree(t, other, "b")
	_, err = unix.Getxattr(dir, parentXattr, nil)
	require.ErrorIs(t, err, unix.ENODATA)
	// A process in a volume can write anything there.
	for _, value := range []string{"", "x", "nonsense that is as long as two UUIDs with a space, 73 bytes in all ....."} {
		require.NoError(t, unix.Setxattr(dir, parentXattr, []byte(value), 0))
		assertParent(t, other, "b", "")
	}
	require.NoError(t, other.Unmount(ctx, "b"))
}

func FuzzParentRecord(f *testing.F) {
	own, parent := btrfsctl.UUID{1, 2, 3}, btrfsctl.UUID{4, 5, 0xff}
	f.Add(own.String() + " " + parent.String())
	f.Add(parent.String() + " " + own.String())
	f.Add(own.String() + " ")
	f.Add(own.String() + " 04-05ff00000000000000000000000000----")
	f.Fuzz(func(t *testing.T, record string) {
		if uuid, ok := parseRecord(record, own); ok {
			assert.Equal(t, own.String()+" "+uuid.String(), record)
		}
	})
	uuid, ok := parseRecord(own.String()+" "+parent.String(), own)
	require.True(f, ok)
	require.Equal(f, parent, uuid)
}

func TestAdoptNot(t *testing.T) {
	mnt, ctx := testfs.Btrfs(t), t.Context()
	b := open(t, mnt, Options{})
	f := newForeign(t, mnt)
	f.create("origin", "")
	f.create("good", "origin")
	f.create("outer", "origin")
	f.create("stranger", "")
	f.write("good/dir/file", "")
	outer, err := os.Open(f.path("outer"))
	require.NoError(t, err)
	require.NoError(t, btrfsctl.CreateSubvolume(int(outer.Fd()), "inner", nil))
	require.NoError(t, outer.Close())
	require.NoError(t, os.Symlink(f.path("good"), f.path("link")))
	require.NoError(t, b.Create(ctx, "there", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Adopt(ctx, "parent", "", f.path("origin"), cowcommon.VolumeOptions{}))
	for name, tt := range map[string]struct {
		name, parent, source string
		want                 error
	}{
		"nested":               {"new", "parent", f.path("outer"), errdefs.ErrNotImplemented},
		"a directory":          {"new", "parent", f.path("good/dir"), errdefs.ErrNotImplemented},
		"a file":               {"new", "parent", f.path("good/dir/file"), errdefs.ErrNotImplemented},
		"a symbolic link":      {"new", "parent", f.path("link"), errdefs.ErrNotImplemented},
		"another filesystem":   {"new", "parent", "/dev/shm", errdefs.ErrNotImplemented},
		"another btrfs":        {"new", "parent", testfs.Btrfs(t), errdefs.ErrNotImplemented},
		"nothing":              {"new", "parent", f.path("nothing"), unix.ENOENT},
		"a relative path":      {"new", "parent", "good", errdefs.ErrInvalidArgument},
		"a layer here":         {"new", "parent", filepath.Join(b.home, subvolumesName, "there"), errdefs.ErrInvalidArgument},
		"a name that is there": {"there", "parent", f.path("good"), errdefs.ErrAlreadyExists},
		"a wrong name":         {"../x", "parent", f.path("good"), errdefs.ErrInvalidArgument},
		"a wrong parent":       {"new", "../x", f.path("good"), errdefs.ErrInvalidArgument},
		"another origin":       {"new", "parent", f.path("stranger"), errdefs.ErrNotImplemented},
		"no such parent":       {"new", "none", f.path("good"), errdefs.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, b.Adopt(ctx, tt.name, tt.parent, tt.source, cowcommon.VolumeOptions{}), tt.want)
			v, err := b.Stat(ctx, "parent")
			require.NoError(t, err)
			assert.False(t, v.Sealed)
			assertClean(t, b, "parent", "there")
		})
	}
	require.ErrorIs(t, cowcommon.Adopt(ctx, cowcommon.ReadOnly(b, unix.EROFS), "new", "", f.path("good"), cowcommon.VolumeOptions{}), cowcommon.ErrReadOnly)
	// A parent in use is not sealed, as by Clone.
	tree(t, b, "parent")
	require.NoError(t, b.Adopt(ctx, "new", "parent", f.path("good"), cowcommon.VolumeOptions{}))
	v, err := b.Stat(ctx, "parent")
	require.NoError(t, err)
	assert.False(t, v.Sealed)
	assertParent(t, b, "new", "parent")
	require.NoError(t, b.Unmount(ctx, "parent"))
}
