package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

const mib = 1 << 20

// modes are the quota modes of the filesystems under test.
var modes = map[string][]testfs.BtrfsOption{
	"off":     nil,
	"simple":  {testfs.WithSimpleQuota()},
	"classic": {testfs.WithClassicQuota()},
}

func inEachMode(t *testing.T, test func(t *testing.T, mnt string)) {
	for mode, opts := range modes {
		t.Run(mode, func(t *testing.T) { test(t, testfs.Btrfs(t, opts...)) })
	}
}

func open(t testing.TB, mnt string, opts Options) *Backend {
	t.Helper()
	b, err := Open(t.Context(), filepath.Join(mnt, "home"), opts)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

// tree mounts a volume for the duration of the test.
func tree(t testing.TB, b *Backend, name string) string {
	t.Helper()
	dir, err := b.Mount(t.Context(), name, "")
	require.NoError(t, err)
	return dir
}

func volumes(t testing.TB, b *Backend) []string {
	t.Helper()
	var names []string
	for v, err := range b.Volumes(t.Context()) {
		require.NoError(t, err)
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return names
}

// assertClean asserts that the home has these volumes and nothing else.
func assertClean(t testing.TB, b *Backend, names ...string) {
	t.Helper()
	assert.Equal(t, names, volumes(t, b))
	for _, dir := range []string{stagingName, viewsName} {
		entries, err := os.ReadDir(filepath.Join(b.home, dir))
		require.NoError(t, err)
		assert.Empty(t, entries, dir)
	}
	entries, err := os.ReadDir(filepath.Join(b.home, removingName))
	require.NoError(t, err)
	for _, entry := range entries {
		assert.True(t, isQgroupMark(entry), entry.Name())
	}
	removed, err := filepath.Glob(filepath.Join(b.home, subvolumesName, removedPrefix+"*"))
	require.NoError(t, err)
	assert.Empty(t, removed)
}

func TestCreateCloneRemove(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		ctx := t.Context()
		b := open(t, mnt, Options{})
		require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{UID: 1000, GID: 1001}))
		dir := tree(t, b, "base")
		var stat unix.Stat_t
		require.NoError(t, unix.Stat(dir, &stat))
		assert.Equal(t, uint32(unix.S_IFDIR|0o755), stat.Mode)
		assert.Equal(t, [2]uint32{1000, 1001}, [2]uint32{stat.Uid, stat.Gid})
		require.NoError(t, os.WriteFile(dir+"/file", []byte("base"), 0o600))
		require.NoError(t, b.Unmount(ctx, "base"))

		require.NoError(t, b.Clone(ctx, "child", "base", cowcommon.VolumeOptions{}))
		child := tree(t, b, "child")
		content, err := os.ReadFile(child + "/file")
		require.NoError(t, err)
		assert.Equal(t, "base", string(content))
		require.NoError(t, os.WriteFile(child+"/file", []byte("child"), 0o600))
		require.NoError(t, b.Unmount(ctx, "child"))

		v, err := b.Stat(ctx, "child")
		require.NoError(t, err)
		assert.Equal(t, "base", v.Parent)
		assert.False(t, v.Sealed)
		v, err = b.Stat(ctx, "base")
		require.NoError(t, err)
		assert.Empty(t, v.Parent)
		assert.True(t, v.Sealed)
		assert.ErrorIs(t, os.WriteFile(dir+"/file", nil, 0o600), unix.EROFS)

		require.NoError(t, b.Remove(ctx, "base"))
		require.NoError(t, b.Remove(ctx, "base"), "removing what is absent")
		v, err = b.Stat(ctx, "child")
		require.NoError(t, err)
		assert.Empty(t, v.Parent, "the parent is gone")
		assertClean(t, b, "child")
	})
}

func TestErrorsAreTypedAndChangeNothing(t *testing.T) {
	ctx := t.Context()
	b := open(t, testfs.Btrfs(t), Options{})
	require.NoError(t, b.Create(ctx, "a", cowcommon.VolumeOptions{}))

	assert.ErrorIs(t, b.Create(ctx, "a", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	assert.ErrorIs(t, b.Clone(ctx, "a", "a", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	assert.ErrorIs(t, b.Clone(ctx, "b", "missing", cowcommon.VolumeOptions{}), errdefs.ErrNotFound)
	assert.ErrorIs(t, b.Rename(ctx, "missing", "b"), errdefs.ErrNotFound)
	for _, name := range []string{"", ".", "..", "../a", "a/b", "a\x00", ".a", "-a", "a b", "ä"} {
		assert.ErrorIs(t, b.Create(ctx, name, cowcommon.VolumeOptions{}), errdefs.ErrInvalidArgument, "%q", name)
		assert.ErrorIs(t, b.Clone(ctx, name, "a", cowcommon.VolumeOptions{}), errdefs.ErrInvalidArgument, "%q", name)
		assert.ErrorIs(t, b.Clone(ctx, "c", name, cowcommon.VolumeOptions{}), errdefs.ErrInvalidArgument, "%q", name)
		assert.ErrorIs(t, b.Remove(ctx, name), errdefs.ErrInvalidArgument, "%q", name)
		assert.ErrorIs(t, b.Rename(ctx, "a", name), errdefs.ErrInvalidArgument, "%q", name)
	}
	_, err := b.Mount(ctx, "missing", "")
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = b.View(ctx, "missing")
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = b.Stat(ctx, "missing")
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = b.Usage(ctx, "a")
	assert.ErrorIs(t, err, errdefs.ErrNotImplemented, "quotas are off")
	assert.NoError(t, b.Unmount(ctx, "a"), "not mounted")
	assertClean(t, b, "a")
}

// TestForeignThingsAreLeftAlone puts files and directories that Cowshed did not make into Cowshed's directories.
func TestForeignThingsAreLeftAlone(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	require.NoError(t, open(t, mnt, Options{}).Close())
	home := filepath.Join(mnt, "home")
	for _, dir := range []string{subvolumesName, stagingName, removingName, viewsName} {
		require.NoError(t, os.Mkdir(filepath.Join(home, dir, "directory"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(home, dir, "file"), nil, 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(home, removingName, qgroupMark+"x"), nil, 0o600))

	b := open(t, mnt, Options{})
	assert.Empty(t, volumes(t, b))
	assert.ErrorIs(t, b.Remove(ctx, "directory"), errNotSubvolume)
	assert.Error(t, b.Remove(ctx, "file"))
	assert.ErrorIs(t, b.Create(ctx, "directory", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	for _, dir := range []string{subvolumesName, stagingName, removingName, viewsName} {
		assert.DirExists(t, filepath.Join(home, dir, "directory"))
		assert.FileExists(t, filepath.Join(home, dir, "file"))
	}
	assert.FileExists(t, filepath.Join(home, removingName, qgroupMark+"x"))
}

func TestMountedVolumeIsNeitherSealedNorRemoved(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	b := open(t, mnt, Options{})
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	dir := tree(t, b, "base")
	require.NoError(t, os.WriteFile(dir+"/a", nil, 0o600))

	other := open(t, mnt, Options{}) // as another process would
	for i, opener := range []*Backend{b, other} {
		require.NoError(t, opener.Clone(ctx, fmt.Sprint("child", i), "base", cowcommon.VolumeOptions{}))
		assert.ErrorIs(t, opener.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
		assert.ErrorIs(t, opener.Rename(ctx, "base", "new"), errdefs.ErrFailedPrecondition)
	}
	require.NoError(t, os.WriteFile(dir+"/b", nil, 0o600), "still writable")
	require.NoError(t, b.Unmount(ctx, "base"))

	target := t.TempDir()
	require.NoError(t, unix.Mount(dir, target, "", unix.MS_BIND, ""))
	require.NoError(t, b.Clone(ctx, "child2", "base", cowcommon.VolumeOptions{}))
	require.NoError(t, os.WriteFile(dir+"/c", nil, 0o600), "still writable: bind-mounted elsewhere")
	require.NoError(t, unix.Unmount(target, 0))

	require.NoError(t, other.Clone(ctx, "child3", "base", cowcommon.VolumeOptions{}))
	assert.ErrorIs(t, os.WriteFile(dir+"/d", nil, 0o600), unix.EROFS, "nobody uses it: sealed")
	assertClean(t, b, "base", "child0", "child1", "child2", "child3")
}

func TestViewIsFrozenAndReadOnly(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		ctx := t.Context()
		b := open(t, mnt, Options{})
		require.NoError(t, b.Create(ctx, "v", cowcommon.VolumeOptions{}))
		dir := tree(t, b, "v")
		require.NoError(t, os.WriteFile(dir+"/f", []byte("before"), 0o600))
		view, err := b.View(ctx, "v")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(dir+"/f", []byte("after"), 0o600))
		content, err := os.ReadFile(view.Dir() + "/f")
		require.NoError(t, err)
		assert.Equal(t, "before", string(content))
		assert.ErrorIs(t, os.WriteFile(view.Dir()+"/g", nil, 0o600), unix.EROFS)
		require.NoError(t, b.Unmount(ctx, "v"))
		require.NoError(t, b.Remove(ctx, "v"), "a snapshot stands by itself")
		require.NoError(t, view.Close())
		require.NoError(t, view.Close(), "closing twice")
		assertClean(t, b)
	})
}

func TestViewOfSealedVolumeHoldsIt(t *testing.T) {
	ctx := t.Context()
	b := open(t, testfs.Btrfs(t), Options{})
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Clone(ctx, "child", "base", cowcommon.VolumeOptions{}))
	view, err := b.View(ctx, "base")
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(b.home, subvolumesName, "base"), view.Dir())
	assert.ErrorIs(t, b.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
	require.NoError(t, view.Close())
	require.NoError(t, b.Remove(ctx, "base"))
	assertClean(t, b, "child")
}

func TestCloseTakesViewsAway(t *testing.T) {
	testfs.CheckLeaks(t)
	mnt := testfs.Btrfs(t)
	b, err := Open(t.Context(), filepath.Join(mnt, "home"), Options{})
	require.NoError(t, err)
	require.NoError(t, b.Create(t.Context(), "v", cowcommon.VolumeOptions{}))
	tree(t, b, "v")
	_, err = b.View(t.Context(), "v")
	require.NoError(t, err)
	require.NoError(t, b.Close())
	entries, err := os.ReadDir(filepath.Join(mnt, "home", viewsName))
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// TestNestedSubvolumes removes a layer in which a container has made subvolumes, some of them read-only or deep.
func TestNestedSubvolumes(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		ctx := t.Context()
		b := open(t, mnt, Options{})
		require.NoError(t, b.Create(ctx, "v", cowcommon.VolumeOptions{}))
		at := tree(t, b, "v")
		for i := range 20 {
			at = filepath.Join(at, "directory")
			require.NoError(t, os.Mkdir(at, 0o755))
			dir, err := os.Open(at)
			require.NoError(t, err)
			require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), "nested", nil))
			require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), "sibling", nil))
			require.NoError(t, dir.Close())
			at = filepath.Join(at, "nested")
			if i == 10 {
				sibling, err := os.Open(filepath.Join(filepath.Dir(at), "sibling"))
				require.NoError(t, err)
				require.NoError(t, btrfsctl.CreateSubvolume(int(sibling.Fd()), "inner", nil))
				require.NoError(t, btrfsctl.SetReadOnly(int(sibling.Fd()), true))
				require.NoError(t, sibling.Close())
			}
		}
		require.NoError(t, b.Unmount(ctx, "v"))
		require.NoError(t, b.Clone(ctx, "child", "v", cowcommon.VolumeOptions{}), "and v is sealed")
		require.NoError(t, b.Remove(ctx, "v"))
		require.NoError(t, b.Remove(ctx, "child"))
		assertClean(t, b)
		assert.Equal(t, []string{"home"}, testfs.Subvolumes(t, mnt))
	})
}

func TestLimits(t *testing.T) {
	for mode, opts := range map[string]Options{
		"simple":        {Quota: quota.PolicySimple},
		"classic":       {Quota: quota.PolicyClassic},
		"auto":          {Quota: quota.PolicyAuto},
		"classic total": {Quota: quota.PolicyClassic, Scope: quota.ScopeTotal},
		"auto total":    {Quota: quota.PolicyAuto, Scope: quota.ScopeTotal},
	} {
		t.Run(mode, func(t *testing.T) {
			ctx := t.Context()
			mnt := testfs.Btrfs(t)
			if err := detect.SimpleQuota(); err != nil && opts.Quota == quota.PolicySimple {
				testfs.Skip(t, "needs simple quotas: %v", err)
			}
			b := open(t, mnt, opts)
			limit := func(bytes uint64) quota.Limit { return quota.Limit{Bytes: bytes, Scope: opts.Scope} }
			// A limit from the start turns quotas on before there is data to recount.
			require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{Limit: limit(100 * mib)}))
			require.NoError(t, writeBytes(tree(t, b, "base")+"/image", 30*mib))
			require.NoError(t, b.Unmount(ctx, "base"))
			require.NoError(t, b.Sync(ctx, "base"))

			require.NoError(t, b.Clone(ctx, "child", "base", cowcommon.VolumeOptions{Limit: limit(40 * mib)}))
			v, err := b.Stat(ctx, "child")
			require.NoError(t, err)
			assert.Equal(t, limit(40*mib), v.Limit)
			dir := tree(t, b, "child")
			room := 40
			if opts.Scope == quota.ScopeTotal {
				room -= 30
			}
			require.NoError(t, writeBytes(dir+"/fits", int64(room-5)*mib))
			assert.ErrorIs(t, writeBytes(dir+"/too-much", 20*mib), unix.EDQUOT)
			require.NoError(t, os.Remove(dir+"/too-much"))
			require.NoError(t, os.Remove(dir+"/fits"))
			require.NoError(t, b.Sync(ctx, "child"))
			require.NoError(t, writeBytes(dir+"/fits", int64(room-5)*mib))

			require.NoError(t, b.SetLimit(ctx, "child", limit(60*mib)))
			require.NoError(t, writeBytes(dir+"/more", 10*mib))
			require.NoError(t, b.Sync(ctx, "child"))
			usage, err := b.Usage(ctx, "child")
			require.NoError(t, err)
			v, err = b.Stat(ctx, "child")
			require.NoError(t, err)
			assert.Equal(t, limit(60*mib), v.Limit)
			assert.InDelta(t, (room-5+10)*mib, usage.Bytes, mib)

			require.NoError(t, b.Clone(ctx, "free", "child", cowcommon.VolumeOptions{}))
			v, err = b.Stat(ctx, "free")
			require.NoError(t, err)
			assert.Zero(t, v.Limit, "a clone does not inherit a limit")
			require.NoError(t, writeBytes(tree(t, b, "free")+"/more", 70*mib))

			require.NoError(t, b.SetLimit(ctx, "child", quota.Limit{}))
			require.NoError(t, writeBytes(dir+"/unlimited", 70*mib))
		})
	}
}

// writeBytes writes data that btrfs compresses little, and syncs it, so that a limit takes effect.
func writeBytes(path string, n int64) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, mib)
	for i := range block {
		block[i] = byte(i * 7)
	}
	for ; n > 0; n -= mib {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}

func TestOpeningDoesNotTurnQuotasOn(t *testing.T) {
	ctx := t.Context()
	b := open(t, testfs.Btrfs(t), Options{})
	require.NoError(t, b.Create(ctx, "a", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Clone(ctx, "b", "a", cowcommon.VolumeOptions{}))
	require.NoError(t, b.SetLimit(ctx, "b", quota.Limit{}))
	mode, err := b.quotas.Mode()
	require.NoError(t, err)
	assert.Equal(t, quota.Off, mode)
	require.NoError(t, b.SetLimit(ctx, "b", quota.Limit{Bytes: mib}))
	mode, err = b.quotas.Mode()
	require.NoError(t, err)
	want := quota.Simple
	if detect.SimpleQuota() != nil { // Linux before 6.7
		want = quota.Classic
	}
	assert.Equal(t, want, mode)
}

// TestQgroupsDoNotLeak destroys volumes, views and nested subvolumes. Then every qgroup belongs to a subvolume.
func TestQgroupsDoNotLeak(t *testing.T) {
	for _, mode := range []string{"simple", "classic"} {
		t.Run(mode, func(t *testing.T) {
			ctx := t.Context()
			mnt := testfs.Btrfs(t, modes[mode]...)
			b, err := Open(t.Context(), filepath.Join(mnt, "home"), Options{})
			require.NoError(t, err)
			for i := range 10 {
				base, child := fmt.Sprint("base", i), fmt.Sprint("child", i)
				require.NoError(t, b.Create(ctx, base, cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 50 * mib}}))
				require.NoError(t, writeBytes(tree(t, b, base)+"/f", mib))
				require.NoError(t, b.Unmount(ctx, base))
				require.NoError(t, b.Clone(ctx, child, base, cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 50 * mib}}))
				view, err := b.View(ctx, child)
				require.NoError(t, err)
				require.NoError(t, view.Close())
				// The parent goes first: in simple mode its qgroup is in use as long as the child exists.
				require.NoError(t, b.Remove(ctx, base))
			}
			require.NoError(t, b.Close())
			testfs.WaitDeleted(t, mnt)
			b, err = Open(t.Context(), filepath.Join(mnt, "home"), Options{})
			require.NoError(t, err)
			for i := range 10 {
				require.NoError(t, b.Remove(ctx, fmt.Sprint("child", i)))
			}
			require.NoError(t, b.Close())
			testfs.WaitDeleted(t, mnt)
			testfs.Sync(t, mnt) // before Linux 6.11, a qgroup has its extents until the next commit
			b = open(t, mnt, Options{})
			assert.Empty(t, testfs.StaleQgroups(t, mnt))
			entries, err := os.ReadDir(filepath.Join(b.home, removingName))
			require.NoError(t, err)
			assert.Empty(t, entries, "marks")
		})
	}
}

// TestRecovery makes the remains of crashes at the worst moments, and opens the home again.
func TestRecovery(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		ctx := t.Context()
		b, err := Open(t.Context(), filepath.Join(mnt, "home"), Options{})
		require.NoError(t, err)
		require.NoError(t, b.Create(ctx, "keep", cowcommon.VolumeOptions{}))
		for dir, name := range map[*os.File]string{
			b.dirs.staging: "left~over", b.dirs.removing: "left~over", b.dirs.views: "left~over",
			b.dirs.subvolumes: removedPrefix + "left~over",
		} {
			require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), name, nil))
			left, err := b.openSubvolume(dir, name)
			require.NoError(t, err)
			require.NoError(t, btrfsctl.CreateSubvolume(int(left.Fd()), "nested", nil))
			require.NoError(t, btrfsctl.SetReadOnly(int(left.Fd()), true))
			require.NoError(t, left.Close())
		}
		other := open(t, mnt, Options{})
		assert.DirExists(t, filepath.Join(other.dirs.views.Name(), "left~over"), "not alone, so nothing is cleaned up")
		require.NoError(t, b.Close())
		require.NoError(t, other.Close())

		b = open(t, mnt, Options{})
		assertClean(t, b, "keep")
		assert.ElementsMatch(t, []string{"home", "home/subvolumes/keep"}, testfs.Subvolumes(t, mnt))
	})
}

// TestConcurrency makes, uses and removes volumes in many goroutines, the same volumes and different ones.
func TestConcurrency(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		b := open(t, mnt, Options{})
		ctx := context.Background()
		require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
		var wg sync.WaitGroup
		var made, removed atomic.Int64
		for worker := range 8 {
			wg.Go(func() {
				for i := range 10 {
					name := fmt.Sprint("shared", i%3)
					err := b.Clone(ctx, name, "base", cowcommon.VolumeOptions{})
					if err == nil {
						made.Add(1)
					} else {
						assert.ErrorIs(t, err, errdefs.ErrAlreadyExists)
					}
					own := fmt.Sprint("own", worker, "-", i)
					assert.NoError(t, b.Clone(ctx, own, "base", cowcommon.VolumeOptions{}))
					dir, err := b.Mount(ctx, own, "")
					if assert.NoError(t, err) {
						assert.NoError(t, os.WriteFile(dir+"/f", []byte(own), 0o600))
						view, err := b.View(ctx, own)
						if assert.NoError(t, err) {
							assert.NoError(t, view.Close())
						}
						assert.NoError(t, b.Unmount(ctx, own))
					}
					assert.NoError(t, b.Remove(ctx, own))
					if _, err := b.Mount(ctx, name, ""); err == nil {
						assert.NoError(t, b.Unmount(ctx, name))
					} else {
						assert.ErrorIs(t, err, errdefs.ErrNotFound)
					}
					if err := b.Remove(ctx, name); err == nil {
						removed.Add(1)
					} else {
						assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
					}
				}
			})
		}
		wg.Wait()
		for i := range 3 {
			require.NoError(t, b.Remove(ctx, fmt.Sprint("shared", i)))
		}
		assert.Positive(t, made.Load())
		assert.Positive(t, removed.Load())
		assertClean(t, b, "base")
		assert.NoError(t, b.uses.CloseAll(func(name string, _ *subvolume) error {
			return fmt.Errorf("%s is in use still", name)
		}))
	})
}

// TestMobyLayout opens a home in the state of moby's driver: with subvolumes that are not sealed, and with a limit
// recorded in a file.
func TestMobyLayout(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	home := filepath.Join(mnt, "home")
	require.NoError(t, os.MkdirAll(filepath.Join(home, subvolumesName), 0o710))
	require.NoError(t, os.MkdirAll(filepath.Join(home, quotasName), 0o700))
	dir, err := os.Open(filepath.Join(home, subvolumesName))
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), "image", nil))
	image, err := os.Open(filepath.Join(dir.Name(), "image"))
	require.NoError(t, err)
	require.NoError(t, btrfsctl.Snapshot(int(dir.Fd()), "container", int(image.Fd()), false, nil))
	require.NoError(t, image.Close())
	require.NoError(t, os.WriteFile(filepath.Join(home, quotasName, "container"), []byte("20971520"), 0o644))

	b := open(t, mnt, Options{})
	assert.Equal(t, []string{"container", "image"}, volumes(t, b))
	v, err := b.Stat(ctx, "container")
	require.NoError(t, err)
	assert.Equal(t, "image", v.Parent)
	at := tree(t, b, "container")
	assert.ErrorIs(t, writeBytes(at+"/f", 30*mib), unix.EDQUOT)
	require.NoError(t, b.Unmount(ctx, "container"))
	require.NoError(t, b.Remove(ctx, "container"))
	assert.NoFileExists(t, filepath.Join(home, quotasName, "container"))
}

func TestStatus(t *testing.T) {
	b := open(t, testfs.Btrfs(t, testfs.WithSimpleQuota()), Options{})
	status := map[string]string{}
	for _, line := range b.Status(t.Context()) {
		status[line[0]] = line[1]
	}
	assert.Equal(t, b.fsUUID.String(), status["Filesystem UUID"])
	assert.Equal(t, "simple, consistent", status["Quota Mode"])
	assert.Regexp(t, "^/dev/loop", status["Device"])
}
