package btrfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/adopttest"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
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

// Source is the path of a subvolume.
func (f foreign) Source(name string) string { return filepath.Join(f.dir.Name(), name) }

func (f foreign) Create(name, from string) {
	f.t.Helper()
	if from == "" {
		require.NoError(f.t, btrfsctl.CreateSubvolume(int(f.dir.Fd()), name, nil))
		return
	}
	source, err := os.Open(f.Source(from))
	require.NoError(f.t, err)
	defer source.Close()
	require.NoError(f.t, btrfsctl.Snapshot(int(f.dir.Fd()), name, int(source.Fd()), false, nil))
}

func (f foreign) Mounted(name string, do func(dir string)) { do(f.Source(name)) }

func (f foreign) Destroy(name string) {
	f.t.Helper()
	require.NoError(f.t, btrfsctl.DestroySubvolume(int(f.dir.Fd()), name))
}

// TestAdopt: the contract, with each kind of quotas.
func TestAdopt(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		adopttest.Adopt(t, newForeign(t, mnt), func() adopttest.Backend { return open(t, mnt, Options{}) },
			func(_, name string) bool { return name == parentXattr })
	})
}

// TestAdoptAgain: the record of a home is not taken for that of another.
func TestAdoptAgain(t *testing.T) {
	mnt, ctx := testfs.Btrfs(t), t.Context()
	b := open(t, mnt, Options{})
	f := newForeign(t, mnt)
	f.Create("1", "")
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{}))
	require.NoError(t, b.Adopt(ctx, "b", "a", f.Source("1"), cowcommon.VolumeOptions{}))
	other, err := Open(ctx, filepath.Join(mnt, "other"), Options{})
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, other.Adopt(ctx, "b", "", filepath.Join(b.home, subvolumesName, "b"), cowcommon.VolumeOptions{}))
	adopttest.CheckParent(t, other, "b", "")
	require.NoError(t, other.Adopt(ctx, "sealed", "", filepath.Join(b.home, subvolumesName, "a"), cowcommon.VolumeOptions{}))
	put(t, other, "sealed", "file", "a copy of what is sealed is writable")
	dir := tree(t, other, "b")
	_, err = unix.Getxattr(dir, parentXattr, nil)
	require.ErrorIs(t, err, unix.ENODATA)
	// A process in a volume can write anything there.
	for _, value := range []string{"", "x", "nonsense that is as long as two UUIDs with a space, 73 bytes in all ....."} {
		require.NoError(t, unix.Setxattr(dir, parentXattr, []byte(value), 0))
		adopttest.CheckParent(t, other, "b", "")
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

// TestAdoptNot: such volumes are not adopted, and nothing is left.
func TestAdoptNot(t *testing.T) {
	mnt := testfs.Btrfs(t)
	b := open(t, mnt, Options{})
	f := newForeign(t, mnt)
	for _, name := range []string{"outer", "files"} {
		f.Create(name, "")
	}
	require.NoError(t, os.Mkdir(f.Source("files/dir"), 0o755))
	require.NoError(t, os.WriteFile(f.Source("files/file"), nil, 0o644))
	outer, err := os.Open(f.Source("outer"))
	require.NoError(t, err)
	require.NoError(t, btrfsctl.CreateSubvolume(int(outer.Fd()), "inner", nil))
	require.NoError(t, outer.Close())
	require.NoError(t, os.Symlink(f.Source("files"), f.Source("link")))
	more := make(map[string]adopttest.Refusal)
	for name, r := range map[string]struct {
		source string
		want   error
	}{
		"nested":             {f.Source("outer"), errdefs.ErrNotImplemented},
		"a directory":        {f.Source("files/dir"), errdefs.ErrNotImplemented},
		"a file":             {f.Source("files/file"), errdefs.ErrNotImplemented},
		"a symbolic link":    {f.Source("link"), errdefs.ErrNotImplemented},
		"another filesystem": {"/dev/shm", errdefs.ErrNotImplemented},
		"another btrfs":      {testfs.Btrfs(t), errdefs.ErrNotImplemented},
		"a relative path":    {"good", errdefs.ErrInvalidArgument},
		"a layer here":       {filepath.Join(b.home, subvolumesName, "there"), errdefs.ErrInvalidArgument},
	} {
		more[name] = adopttest.Refusal{Name: "new", Parent: "parent", Source: r.source, Want: r.want}
	}
	adopttest.AdoptNot(t, b, f, f.Source("nothing"), more, func(t *testing.T) { assertClean(t, b, "parent", "there") })
}
