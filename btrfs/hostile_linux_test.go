package btrfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// protect makes a file or directory immutable, as chattr +i does.
func protect(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0x10))
}

// nestTooDeep makes a subvolume, and a subvolume inside it, under a path longer than PATH_MAX.
func nestTooDeep(t testing.TB, root string) {
	t.Helper()
	dir, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	for range 20 {
		name := strings.Repeat("d", 250)
		require.NoError(t, unix.Mkdirat(dir, name, 0o755))
		next, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(dir))
		dir = next
	}
	require.NoError(t, btrfsctl.CreateSubvolume(dir, "nested", nil))
	nested, err := unix.Openat(dir, "nested", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	require.NoError(t, btrfsctl.CreateSubvolume(nested, "inner", nil))
	require.NoError(t, unix.Close(nested))
	require.NoError(t, unix.Close(dir))
}

// TestHostileLayers gives layers content that hampers looking at them and removing them.
func TestHostileLayers(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, root string){
		"nested too deep": func(t *testing.T, root string) { nestTooDeep(t, root) },
		"immutable root":  func(t *testing.T, root string) { protect(t, root) },
		"immutable content": func(t *testing.T, root string) {
			require.NoError(t, os.WriteFile(root+"/f", nil, 0o600))
			protect(t, root+"/f")
		},
		"nested in immutable directory": func(t *testing.T, root string) {
			require.NoError(t, os.Mkdir(root+"/d", 0o755))
			dir, err := os.Open(root + "/d")
			require.NoError(t, err)
			require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), "nested", nil))
			require.NoError(t, dir.Close())
			protect(t, root+"/d/nested")
			protect(t, root+"/d")
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			mnt := testfs.Btrfs(t)
			b := open(t, mnt, Options{})
			require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
			require.NoError(t, b.Clone(ctx, "layer", "base", cowcommon.VolumeOptions{}))
			spoil(t, tree(t, b, "layer"))

			base, err := b.View(ctx, "base")
			require.NoError(t, err)
			top, err := b.View(ctx, "layer")
			require.NoError(t, err)
			if _, err := b.Hints(ctx, base, top); err != nil {
				assert.ErrorIs(t, err, treediff.ErrNoHints)
			}
			_, err = treediff.Compare(ctx, top.Dir(), base.Dir(), nil)
			require.NoError(t, err)
			require.NoError(t, base.Close())
			require.NoError(t, top.Close())

			require.NoError(t, b.Unmount(ctx, "layer"))
			require.NoError(t, b.Clone(ctx, "child", "layer", cowcommon.VolumeOptions{}))
			require.NoError(t, b.Remove(ctx, "layer"))
			require.NoError(t, b.Remove(ctx, "child"))
			assertClean(t, b, "base")
			assert.ElementsMatch(t, []string{"home", "home/subvolumes/base"}, testfs.Subvolumes(t, mnt))
		})
	}
}

// TestMountProtects mounts a volume by one backend while another backend, as another process would, removes it. Then
// the first makes it anew. A mounted volume always exists.
func TestMountProtects(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	one, other := open(t, mnt, Options{}), open(t, mnt, Options{})
	require.NoError(t, one.Create(ctx, "base", cowcommon.VolumeOptions{}))
	for range 200 {
		require.NoError(t, one.Clone(ctx, "v", "base", cowcommon.VolumeOptions{}))
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := other.Remove(ctx, "v"); err != nil {
				assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			}
		})
		dir, err := one.Mount(ctx, "v", "")
		wg.Wait()
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			continue
		}
		require.DirExists(t, dir)
		require.NoError(t, one.Unmount(ctx, "v"))
		require.NoError(t, one.Remove(ctx, "v"))
	}
}

func TestBindMountedVolumeIsNotRemoved(t *testing.T) {
	ctx := t.Context()
	b := open(t, testfs.Btrfs(t), Options{})
	require.NoError(t, b.Create(ctx, "v", cowcommon.VolumeOptions{}))
	dir := tree(t, b, "v")
	require.NoError(t, os.Mkdir(dir+"/d", 0o755))
	require.NoError(t, b.Unmount(ctx, "v"))
	target := t.TempDir()
	require.NoError(t, unix.Mount(dir+"/d", target, "", unix.MS_BIND, ""))
	assert.ErrorIs(t, b.Remove(ctx, "v"), errdefs.ErrFailedPrecondition)
	assert.ErrorIs(t, b.Rename(ctx, "v", "w"), errdefs.ErrFailedPrecondition)
	require.NoError(t, unix.Unmount(target, 0))
	require.NoError(t, b.Remove(ctx, "v"))
}

// TestFailedCloneLeavesItsSourceAsItWas: a failed clone does not seal its source.
func TestFailedCloneLeavesItsSourceAsItWas(t *testing.T) {
	ctx := t.Context()
	b := open(t, testfs.Btrfs(t), Options{Quota: quota.PolicyOff})
	require.NoError(t, b.Create(ctx, "v", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Create(ctx, "taken", cowcommon.VolumeOptions{}))
	assert.ErrorIs(t, b.Clone(ctx, "v", "v", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	assert.ErrorIs(t, b.Clone(ctx, "taken", "v", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	assert.ErrorIs(t, b.Clone(ctx, "w", "v", cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: mib}}), errdefs.ErrFailedPrecondition)
	v, err := b.Stat(ctx, "v")
	require.NoError(t, err)
	assert.False(t, v.Sealed)
	assertClean(t, b, "taken", "v")
}

// TestRecordedLimits: the limits that moby's driver recorded stay with their layers. A layer can be used even if its
// recorded limit cannot be set.
func TestRecordedLimits(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t, testfs.WithSimpleQuota())
	records := filepath.Join(mnt, "home", quotasName)
	require.NoError(t, os.MkdirAll(records, 0o700))
	b := open(t, mnt, Options{})
	record := func(name, bytes string) {
		require.NoError(t, os.WriteFile(filepath.Join(records, name), []byte(bytes), 0o600))
	}
	limit := func(b *Backend, name string) quota.Limit {
		tree(t, b, name)
		require.NoError(t, b.Unmount(ctx, name))
		v, err := b.Stat(ctx, name)
		require.NoError(t, err)
		return v.Limit
	}
	for i, name := range []string{"a", "b", "c"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
		record(name, fmt.Sprint((i+1)*mib))
	}
	require.NoError(t, b.Rename(ctx, "a", "renamed"))
	assert.EqualValues(t, mib, limit(b, "renamed").Bytes)
	record("new", fmt.Sprint(mib))
	require.NoError(t, b.Create(ctx, "new", cowcommon.VolumeOptions{}))
	assert.Zero(t, limit(b, "new"), "a record from before the layer")
	assert.Zero(t, limit(open(t, mnt, Options{Quota: quota.PolicyOff}), "b"))
	assert.Zero(t, limit(open(t, mnt, Options{Scope: quota.ScopeTotal}), "b"), "simple quotas cannot")
	assert.EqualValues(t, 2*mib, limit(b, "b").Bytes)
	record("c", "nonsense")
	assert.Zero(t, limit(b, "c"))
}

// TestLeftoversThatStayDoNotKeepTheHomeFromOpening: a subvolume that cannot be destroyed is only reported.
func TestLeftoversThatStayDoNotKeepTheHomeFromOpening(t *testing.T) {
	mnt := testfs.Btrfs(t)
	b, err := Open(t.Context(), filepath.Join(mnt, "home"), Options{})
	require.NoError(t, err)
	require.NoError(t, btrfsctl.CreateSubvolume(int(b.dirs.staging.Fd()), "left~over", nil))
	swap := filepath.Join(b.dirs.staging.Name(), "left~over", "swap")
	f, err := os.Create(swap)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0x00800000)) // FS_NOCOW_FL
	require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, 10*mib))
	require.NoError(t, f.Close())
	require.NoError(t, b.Close())
	makeSwap(t, swap)

	b = open(t, mnt, Options{})
	assert.DirExists(t, filepath.Join(b.dirs.staging.Name(), "left~over"))
	require.NoError(t, b.Create(t.Context(), "v", cowcommon.VolumeOptions{}))
}

// TestRemoveSaysWhatNestedKeepsIt: the kernel refuses to destroy a nested subvolume, after its layer has been hidden.
func TestRemoveSaysWhatNestedKeepsIt(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	b, err := Open(t.Context(), filepath.Join(mnt, "home"), Options{})
	require.NoError(t, err)
	require.NoError(t, b.Create(ctx, "v", cowcommon.VolumeOptions{}))
	nested := filepath.Join(b.dirs.subvolumes.Name(), "v", "nested")
	setDefault := func(args ...string) {
		out, err := exec.Command("btrfs", append([]string{"subvolume", "set-default"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	out, err := exec.Command("btrfs", "subvolume", "create", nested).CombinedOutput()
	require.NoError(t, err, "%s", out)
	setDefault(nested)

	err = b.Remove(ctx, "v")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.ErrorIs(t, err, unix.EPERM)
	_, err = b.Stat(ctx, "v")
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	setDefault("5", mnt)
	require.NoError(t, b.Close())
	assertClean(t, open(t, mnt, Options{}))
}

// makeSwap makes a swap file and swaps to it until the test ends. The kernel refuses to snapshot or destroy its
// subvolume then.
func makeSwap(t testing.TB, path string) {
	t.Helper()
	for _, args := range [][]string{{"mkswap", path}, {"swapon", path}} {
		require.NoError(t, os.Chmod(path, 0o600))
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	t.Cleanup(func() {
		out, err := exec.Command("swapoff", path).CombinedOutput()
		assert.NoError(t, err, "%s", out)
	})
}
