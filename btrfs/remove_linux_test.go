package btrfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// nestIn makes a subvolume in the directory at path.
func nestIn(t *testing.T, path, name string) {
	t.Helper()
	dir, err := os.Open(path)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), name, nil))
}

// The kernel refuses to destroy the filesystem's default subvolume. That subvolume stays as it is, and nothing else
// stays.
func TestRemoveThatFailsChangesNothing(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, root string){
		"plain":          func(*testing.T, string) {},
		"immutable root": func(t *testing.T, root string) { protect(t, root) },
		"nested":         func(t *testing.T, root string) { nestIn(t, root, "nested") },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			mnt := testfs.Btrfs(t, testfs.WithSimpleQuota())
			b := open(t, mnt, Options{})
			root := create(t, b, "volume")
			spoil(t, root)
			require.NoError(t, b.Seal(ctx, "volume"))
			out, err := exec.Command("btrfs", "subvolume", "set-default", root).CombinedOutput()
			require.NoError(t, err, string(out))
			before := protectionAt(t, root)

			require.ErrorIs(t, b.Remove(ctx, "volume"), errdefs.ErrFailedPrecondition)
			assert.True(t, isSealed(t, b, "volume"))
			assert.Equal(t, before, protectionAt(t, root))
			if name == "nested" {
				assert.DirExists(t, root+"/nested")
			}
			entries, err := os.ReadDir(filepath.Join(b.home, removingName))
			require.NoError(t, err)
			assert.Empty(t, entries)

			out, err = exec.Command("btrfs", "subvolume", "set-default", "5", mnt).CombinedOutput()
			require.NoError(t, err, string(out))
			require.NoError(t, b.Remove(ctx, "volume"))
			assertClean(t, b)
		})
	}
}

func protectionAt(t *testing.T, path string) btrfsctl.Protection {
	t.Helper()
	dir, err := os.Open(path)
	require.NoError(t, err)
	defer dir.Close()
	p, err := btrfsctl.ProtectionOf(int(dir.Fd()))
	require.NoError(t, err)
	return p
}

// A volume that is at its limit can be sealed, cloned from and removed.
func TestVolumeAtItsLimit(t *testing.T) {
	for mode, policy := range map[string]quota.Policy{"simple": quota.PolicySimple, "classic": quota.PolicyClassic} {
		t.Run(mode, func(t *testing.T) {
			ctx := t.Context()
			b := open(t, testfs.Btrfs(t, modes[mode]...), Options{Quota: policy})
			require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 4 * mib}}))
			root := filepath.Join(b.home, subvolumesName, "volume")
			nestIn(t, root, "nested")
			nestIn(t, root+"/nested", "inner")
			// Both are used up: the space for data, and the room for entries.
			require.ErrorIs(t, writeBytes(root+"/data", 8*mib), unix.EDQUOT)
			var err error
			for i := 0; err == nil && i < 1000; i++ {
				err = unix.Setxattr(root, fmt.Sprint("user.", i), make([]byte, 1<<10), 0)
			}
			require.NoError(t, b.Sync(ctx, "volume"))

			require.NoError(t, b.Clone(ctx, "child", "volume", cowcommon.VolumeOptions{}))
			assert.True(t, isSealed(t, b, "volume"))
			require.NoError(t, b.Remove(ctx, "volume"))
			require.NoError(t, b.Remove(ctx, "child"))
			assertClean(t, b)
		})
	}
}

// The process dies during a removal, where there is no room to rename the volume away. The next process that opens the
// home completes the removal, or the next call of Remove does. Until then nobody finds the volume.
func TestInterruptedRemovalOnAFullFilesystem(t *testing.T) {
	for name, finish := range map[string]func(t *testing.T, b *Backend) *Backend{
		"by opening": func(t *testing.T, b *Backend) *Backend {
			require.NoError(t, b.Close())
			return open(t, filepath.Dir(b.home), Options{})
		},
		"by removing": func(t *testing.T, b *Backend) *Backend {
			t.Cleanup(func() { assert.NoError(t, b.Close()) })
			require.NoError(t, b.Remove(t.Context(), "volume"))
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			mnt := testfs.Btrfs(t)
			b, err := Open(t.Context(), filepath.Join(mnt, "home"), Options{})
			require.NoError(t, err)
			root := create(t, b, "volume")
			nestIn(t, root, "nested")
			nestIn(t, root, "another")
			create(t, b, "other")

			v, err := b.claim(ctx, "volume")
			require.NoError(t, err)
			require.NoError(t, b.markDoomed(v))
			require.NoError(t, btrfsctl.DestroySubvolume(v.fd(), "nested"))
			require.NoError(t, v.done())

			_, err = b.Stat(ctx, "volume")
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			_, err = b.Mount(ctx, "volume", "")
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			require.ErrorIs(t, b.Clone(ctx, "clone", "volume", cowcommon.VolumeOptions{}), errdefs.ErrNotFound)
			assert.Equal(t, []string{"other"}, volumes(t, b))

			b = finish(t, b)
			assertClean(t, b, "other")
			assert.NoDirExists(t, root)
			require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
		})
	}
}

// A process in a layer cannot hide the layer by giving its root the owner of a doomed volume.
func TestOwnerDoomsNothing(t *testing.T) {
	b := open(t, testfs.Btrfs(t), Options{})
	root := create(t, b, "volume")
	dir, err := b.openVolume("volume")
	require.NoError(t, err)
	uid, gid := doomedOwner(dir.info.UUID)
	require.NoError(t, dir.Close())
	require.NoError(t, unix.Lchown(root, int(uid), int(gid)))
	assert.Equal(t, []string{"volume"}, volumes(t, b))
	require.NoError(t, b.Remove(t.Context(), "volume"))
	assert.NoDirExists(t, root)
}

// A sealed volume with nested subvolumes stays sealed until it is removed. After a power cut at any moment of its
// removal it is either whole and sealed, or removed.
func TestSealedVolumeIsSealedUntilItIsGone(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	b := open(t, mnt, Options{})
	nestIn(t, create(t, b, "volume"), "nested")
	require.NoError(t, b.Clone(ctx, "child", "volume", cowcommon.VolumeOptions{}))
	v, err := b.claim(ctx, "volume")
	require.NoError(t, err)
	as, err := v.takeAway()
	require.NoError(t, err)
	info, err := btrfsctl.Info(v.fd())
	require.NoError(t, err)
	assert.True(t, info.ReadOnly)
	after := open(t, testfs.PowerCut(t, mnt), Options{})
	assertClean(t, after, "child")
	require.NoError(t, b.destroy(b.dirs.subvolumes, as))
	require.NoError(t, v.done())
	assertClean(t, b, "child")
}

// Views come and go, and leave nothing.
func TestClosedViewsLeaveNothing(t *testing.T) {
	for _, mode := range []string{"simple", "classic"} {
		t.Run(mode, func(t *testing.T) {
			ctx := t.Context()
			mnt := testfs.Btrfs(t, modes[mode]...)
			b := open(t, mnt, Options{})
			create(t, b, "volume")
			for range 20 {
				view, err := b.View(ctx, "volume")
				require.NoError(t, err)
				require.NoError(t, view.Close())
			}
			entries, err := os.ReadDir(filepath.Join(b.home, removingName))
			require.NoError(t, err)
			assert.Empty(t, entries)
			testfs.WaitDeleted(t, mnt)
			b.sweepQgroups()
			assert.Empty(t, testfs.StaleQgroups(t, mnt))
			assert.Empty(t, b.leftovers.expected)
		})
	}
}
