package zfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestInUse: a mounted volume is neither removed, sealed nor renamed, wherever it is mounted and however the mount is
// covered. It is cloned as it is. After the unmount all of that can be done.
func TestInUse(t *testing.T) {
	b := open(t)
	inNamespace := func(script string) func(t *testing.T) func() {
		return func(t *testing.T) func() {
			_, end := testfs.InNamespace(t, "private", script, b.datasetOf("volume"), t.TempDir())
			return end
		}
	}
	mounted := func(t *testing.T) (at string, end func()) {
		at = filepath.Join(t.TempDir(), "at")
		require.NoError(t, os.Mkdir(at, 0o700))
		require.NoError(t, unix.Mount(b.datasetOf("volume"), at, "zfs", 0, ""))
		return at, func() { assert.NoError(t, unix.Unmount(at, 0)) }
	}
	for name, s := range map[string]struct {
		mount func(t *testing.T) (end func())
		says  string
		long  bool // only in the long tests: Remove waits three seconds each time
	}{
		"mounted": {func(t *testing.T) func() { _, end := mounted(t); return end }, "mounted on /", true},
		"covered on its mount point": {func(t *testing.T) func() {
			at, end := mounted(t)
			require.NoError(t, unix.Mount("cover", at, "tmpfs", 0, ""))
			return func() { assert.NoError(t, unix.Unmount(at, 0)); end() }
		}, "mounted on /", false},
		"covered above": {func(t *testing.T) func() {
			at, end := mounted(t)
			require.NoError(t, unix.Mount("cover", filepath.Dir(at), "tmpfs", 0, ""))
			return func() { assert.NoError(t, unix.Unmount(filepath.Dir(at), 0)); end() }
		}, "mounted on /", true},
		"another mount namespace": {inNamespace(`mount -t zfs "$0" "$1"`), "in the mount namespace of process", true},
		"covered in another mount namespace": {inNamespace(`mount -t zfs "$0" "$1"; mount -t tmpfs cover "$1"`),
			"in the mount namespace of process", false},
		"namespace without processes": {func(t *testing.T) func() {
			pid, end := testfs.InNamespace(t, "private", `mount -t zfs "$0" "$1"`, b.datasetOf("volume"), t.TempDir())
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
			require.NoError(t, err)
			end()
			return func() { assert.NoError(t, ns.Close()) }
		}, "without processes", false},
		"lower of an overlay alone": {func(t *testing.T) func() {
			lower, end := mounted(t)
			at := t.TempDir()
			require.NoError(t, unix.Mount("overlay", at, "overlay", 0, "lowerdir="+lower+":"+t.TempDir()))
			end()
			return func() { assert.NoError(t, unix.Unmount(at, 0)) }
		}, "overlay", false},
	} {
		if s.long && !testfs.Long() {
			continue
		}
		t.Run(name, func(t *testing.T) { testInUse(t, b, s.mount, s.says) })
	}
}

// TestInUseBelowSpaces: a mount is seen also where the names of datasets have spaces.
func TestInUseBelowSpaces(t *testing.T) {
	above, _ := testfs.ZFS(t)
	root := above + "/a  b"
	zfs(t, "create", "-o", "mountpoint=none", root)
	b := openOn(t, root, t.TempDir())
	testInUse(t, b, func(t *testing.T) func() {
		at := t.TempDir()
		require.NoError(t, unix.Mount(b.datasetOf("volume"), at, "zfs", 0, ""))
		return func() { assert.NoError(t, unix.Unmount(at, 0)) }
	}, "mounted on /")
}

func testInUse(t *testing.T, b *Backend, mount func(t *testing.T) (end func()), says string) {
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
	end := mount(t)
	for what, operation := range map[string]func() error{
		"remove": func() error { return b.Remove(ctx, "volume") },
		"seal":   func() error { return b.Seal(ctx, "volume") },
		"rename": func() error { return b.Rename(ctx, "volume", "renamed") },
	} {
		err := operation()
		if assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition, what) {
			assert.Contains(t, err.Error(), says, what)
		}
		_, err = b.Stat(ctx, "volume")
		require.NoError(t, err, what)
	}
	assert.NoError(t, b.Clone(ctx, "clone", "volume", cowcommon.VolumeOptions{}))
	v, err := b.Stat(ctx, "volume")
	require.NoError(t, err)
	assert.False(t, v.Sealed, "cloned as it is")

	end()
	require.NoError(t, b.Rename(ctx, "volume", "renamed"))
	require.NoError(t, b.Remove(ctx, "clone"))
	require.NoError(t, b.Seal(ctx, "renamed"))

	// A sealed volume is mounted by its snapshot.
	at := t.TempDir()
	require.NoError(t, unix.Mount(b.sealOf("renamed"), at, "zfs", unix.MS_RDONLY, ""))
	assert.ErrorIs(t, b.Rename(ctx, "renamed", "volume"), errdefs.ErrFailedPrecondition)
	assert.ErrorIs(t, b.Remove(ctx, "renamed"), errdefs.ErrFailedPrecondition)
	require.NoError(t, unix.Unmount(at, 0))
	require.NoError(t, b.Remove(ctx, "renamed"))
}

// TestSealAfterDiagnosis seals a volume as soon as it is unmounted. Meanwhile an earlier Seal, which failed, still
// looks for the users of the volume, and mounts it for that.
func TestSealAfterDiagnosis(t *testing.T) {
	b, ctx := open(t), t.Context()
	for i := range 5 {
		name := fmt.Sprintf("volume-%d", i)
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
		at := t.TempDir()
		require.NoError(t, unix.Mount(b.datasetOf(name), at, "zfs", 0, ""))
		require.ErrorIs(t, b.Seal(ctx, name), errdefs.ErrFailedPrecondition)
		refused := make(chan error)
		go func() {
			var err error
			for range 3 {
				if err = b.Seal(ctx, name); err == nil {
					break // after the unmount
				}
			}
			refused <- err
		}()
		time.Sleep(time.Duration(i) * 20 * time.Millisecond)
		require.NoError(t, unix.Unmount(at, 0))
		assert.NoError(t, b.Seal(ctx, name))
		if err := testfs.Receive(t, refused); err != nil {
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		}
		require.NoError(t, b.Remove(ctx, name))
	}
}
