package zfs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// assertOnly asserts that below the dataset of a Backend there are only the datasets of these volumes.
func assertOnly(t *testing.T, b *Backend, names ...string) {
	t.Helper()
	want := []string{b.root}
	for _, name := range names {
		want = append(want, b.datasetOf(name))
	}
	out := strings.TrimSpace(zfs(t, "list", "-Hr", "-o", "name", b.root))
	assert.ElementsMatch(t, want, strings.Split(out, "\n"))
}

// retainedBy returns the removed volumes whose data is there.
func retainedBy(t *testing.T, b *Backend) cowcommon.Retained {
	t.Helper()
	retained, err := b.Retained(t.Context())
	require.NoError(t, err)
	return retained
}

// content returns the content of a file in a volume.
func content(ctx context.Context, b *Backend, volume, file string) (string, error) {
	dir, err := b.Mount(ctx, volume, "")
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	return string(data), errors.Join(err, b.Unmount(ctx, volume))
}

func assertContent(t *testing.T, b *Backend, volume, file, want string) {
	t.Helper()
	got, err := content(t.Context(), b, volume, file)
	require.NoError(t, err)
	assert.Equal(t, want, got, volume)
}

// TestRemoveParent: a volume with a clone disappears at once, for all processes. Its name is free, its space is shown, and
// goes with the clone.
func TestRemoveParent(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b, beside := openOn(t, root, mountpoint), openOn(t, root, mountpoint)
	ctx := t.Context()
	data := string(randomBytes(2 << 20))
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "f", []byte(data))
	require.NoError(t, b.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	assert.Zero(t, retainedBy(t, b))
	assert.Empty(t, b.Examine(ctx))

	require.NoError(t, b.Remove(ctx, "base"))
	for _, b := range []*Backend{b, beside} {
		for v, err := range b.Volumes(ctx) {
			require.NoError(t, err)
			assert.Equal(t, "top", v.Name)
		}
		_, err := b.Stat(ctx, "base")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = b.Mount(ctx, "base", "")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = b.View(ctx, "base")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.ErrorIs(t, b.Clone(ctx, "other", "base", cowcommon.VolumeOptions{}), errdefs.ErrNotFound)
		require.NoError(t, b.Remove(ctx, "base"))
		v, err := b.Stat(ctx, "top")
		require.NoError(t, err)
		assert.Empty(t, v.Parent)
		assertContent(t, b, "top", "f", data)
		retained := retainedBy(t, b)
		assert.Equal(t, 1, retained.Volumes)
		assert.Greater(t, retained.Bytes, uint64(2<<20))
		require.Len(t, b.Examine(ctx), 1)
		assert.Contains(t, b.Examine(ctx)[0].Detail, "1 keep")
		assert.Contains(t, b.Status(ctx), [2]string{"Removed Layers With Children", "1"})
	}

	require.NoError(t, beside.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "f", []byte("new"))
	require.NoError(t, b.Clone(ctx, "second", "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Remove(ctx, "base"))
	assert.Equal(t, 2, retainedBy(t, b).Volumes)
	assertContent(t, b, "top", "f", data)
	assertContent(t, b, "second", "f", "new")
	require.NoError(t, beside.Remove(ctx, "top"))
	assert.Equal(t, 1, retainedBy(t, b).Volumes)
	require.NoError(t, b.Remove(ctx, "second"))
	assert.Zero(t, retainedBy(t, b))
	assertOnly(t, b)
}

// permutations calls do with each order of the numbers from 0.
func permutations(n int, do func([]int)) {
	var place func(order []int)
	place = func(order []int) {
		if len(order) == n {
			do(slices.Clone(order))
			return
		}
		for i := range n {
			if !slices.Contains(order, i) {
				place(append(order, i))
			}
		}
	}
	place(nil)
}

// TestRemoveInAnyOrder removes a chain of five volumes in each of the 120 orders, many chains at once. The volumes that
// are left stay whole, and in the end nothing is left. The short variant takes every sixth order, from a random one on.
func TestRemoveInAnyOrder(t *testing.T) {
	b := open(t)
	const length = 5
	atOnce := make(chan struct{}, 24)
	every, n := 1, 0
	if !testfs.Long() {
		every = 6
		n = rand.IntN(every)
	}
	var wg sync.WaitGroup
	permutations(length, func(order []int) {
		if n++; n%every != 0 {
			return
		}
		atOnce <- struct{}{}
		wg.Go(func() {
			defer func() { <-atOnce }()
			assert.NoError(t, removeChain(t.Context(), b, order), "%v", order)
		})
	})
	wg.Wait()
	assert.Zero(t, retainedBy(t, b))
	assertOnly(t, b)
}

func removeChain(ctx context.Context, b *Backend, order []int) error {
	name := func(i int) string {
		return fmt.Sprintf("%d-of-%v", i, strings.Trim(strings.ReplaceAll(fmt.Sprint(order), " ", ""), "[]"))
	}
	if err := b.Create(ctx, name(0), cowcommon.VolumeOptions{}); err != nil {
		return err
	}
	dir, err := b.Mount(ctx, name(0), "")
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(dir, "file"), []byte(name(0)), 0o600)
	if err = errors.Join(err, b.Unmount(ctx, name(0))); err != nil {
		return err
	}
	for i := 1; i < len(order); i++ {
		if err := b.Clone(ctx, name(i), name(i-1), cowcommon.VolumeOptions{}); err != nil {
			return err
		}
	}
	last := name(order[len(order)-1])
	for _, i := range order[:len(order)-1] {
		if err := b.Remove(ctx, name(i)); err != nil {
			return err
		}
		if _, err := b.Stat(ctx, name(i)); !errdefs.IsNotFound(err) {
			return fmt.Errorf("%s is still there: %w", name(i), err)
		}
	}
	if got, err := content(ctx, b, last, "file"); err != nil || got != name(0) {
		return fmt.Errorf("%s has %q: %w", last, got, err)
	}
	return b.Remove(ctx, last)
}

// TestRemoveWhileCloning removes a volume while two processes clone it. Each clone succeeds and is whole, or the volume
// was gone.
func TestRemoveWhileCloning(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	backends := []*Backend{openOn(t, root, mountpoint), openOn(t, root, mountpoint)}
	ctx := t.Context()
	rounds := 6
	if testfs.Long() {
		rounds = 60
	}
	made, missed := 0, 0
	for round := range rounds {
		require.NoError(t, backends[0].Create(ctx, "base", cowcommon.VolumeOptions{}))
		fill(t, backends[0], "base", "f", []byte(fmt.Sprint(round)))
		var wg sync.WaitGroup
		errs := make([]error, 6)
		for i := range errs {
			wg.Go(func() {
				errs[i] = backends[i%2].Clone(ctx, fmt.Sprint("clone-", i), "base", cowcommon.VolumeOptions{})
			})
		}
		wg.Go(func() {
			for {
				err := backends[round%2].Remove(ctx, "base")
				if err == nil {
					return
				}
				if !assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition) { // a clone of it is being made
					return
				}
			}
		})
		wg.Wait()
		for i, err := range errs {
			name := fmt.Sprint("clone-", i)
			if err != nil {
				require.ErrorIs(t, err, errdefs.ErrNotFound)
				missed++
				continue
			}
			made++
			assertContent(t, backends[i%2], name, "f", fmt.Sprint(round))
			v, err := backends[(i+1)%2].Stat(ctx, name)
			require.NoError(t, err)
			assert.Empty(t, v.Parent)
		}
		for i := range errs {
			wg.Go(func() { assert.NoError(t, backends[i%2].Remove(ctx, fmt.Sprint("clone-", i))) })
		}
		wg.Wait()
		assertOnly(t, backends[0])
	}
	t.Logf("%d clones made, %d too late", made, missed)
}

// TestRecoversAside: the next Open destroys datasets that were set aside and that nobody needs, as after a crash. It keeps
// the others.
func TestRecoversAside(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b := openOn(t, root, mountpoint)
	ctx := t.Context()
	reopen := func() {
		t.Helper()
		require.NoError(t, b.Close())
		b = openOn(t, root, mountpoint)
	}

	// Before the rename.
	zfs(t, "create", b.datasetOf(asideName))
	reopen()
	assertOnly(t, b)

	// After the rename, before the last clone goes; and without a clone.
	require.NoError(t, b.zfs.kernel.Create(b.datasetOf(asideName), asideProperties()))
	for _, pair := range [][2]string{{"a", ""}, {"b", "a"}, {"c", "b"}, {"d", ""}, {"e", "d"}} {
		if pair[1] == "" {
			require.NoError(t, b.Create(ctx, pair[0], cowcommon.VolumeOptions{}))
			fill(t, b, pair[0], "f", []byte(pair[0]))
		} else {
			require.NoError(t, b.Clone(ctx, pair[0], pair[1], cowcommon.VolumeOptions{}))
		}
	}
	for _, name := range []string{"a", "b", "d"} {
		zfs(t, "rename", b.datasetOf(name), b.datasetOf(asideName+"/"+name))
	}
	zfs(t, "rename", b.datasetOf("e"), b.datasetOf(asideName+" e"))
	reopen()
	assertOnly(t, b, "c", asideName, asideName+"/a", asideName+"/b")
	assert.Equal(t, 2, retainedBy(t, b).Volumes)
	assertContent(t, b, "c", "f", "a")
	v, err := b.Stat(ctx, "c")
	require.NoError(t, err)
	assert.Empty(t, v.Parent)
	_, err = b.Stat(ctx, "a")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	// Others have destroyed the clone. They have made another clone, which needs the dataset.
	zfs(t, "destroy", b.datasetOf("c"))
	foreign := filepath.Dir(root) + "/" + filepath.Base(root) + "-foreign"
	zfs(t, "clone", "-o", "mountpoint=none", b.datasetOf(asideName+"/a@"+sealName), foreign)
	reopen()
	assertOnly(t, b, asideName, asideName+"/a")
	zfs(t, "destroy", foreign)
	reopen()
	assertOnly(t, b)
}

// TestPromoted: once the clone was promoted, it needs nothing that was set aside.
func TestPromoted(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b := openOn(t, root, mountpoint)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "f", []byte("base"))
	require.NoError(t, b.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Remove(ctx, "base"))
	zfs(t, "promote", b.datasetOf("top"))
	require.NoError(t, b.Close())
	b = openOn(t, root, mountpoint)
	assertOnly(t, b, "top")
	assertContent(t, b, "top", "f", "base")
}

// TestAsideIsShrunk: of a removed volume only that data is kept that clones have.
func TestAsideIsShrunk(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "f", []byte("x"))
	dir, err := b.Mount(ctx, "base", "")
	require.NoError(t, err)
	require.NoError(t, b.Clone(ctx, "first", "base", cowcommon.VolumeOptions{}))
	require.NoError(t, os.WriteFile(dir+"/second", randomBytes(4<<20), 0o600))
	require.NoError(t, b.Clone(ctx, "second", "base", cowcommon.VolumeOptions{}))
	require.NoError(t, os.WriteFile(dir+"/later", randomBytes(8<<20), 0o600))
	require.NoError(t, b.Unmount(ctx, "base"))
	require.NoError(t, b.Remove(ctx, "base"))
	bytes := retainedBy(t, b).Bytes
	assert.Greater(t, bytes, uint64(4<<20), "the second clone has it")
	assert.Less(t, bytes, uint64(8<<20), "nobody has it")
	require.NoError(t, b.Remove(ctx, "second"))
	assert.Less(t, retainedBy(t, b).Bytes, uint64(2<<20))
	assertContent(t, b, "first", "f", "x")
	require.NoError(t, b.Remove(ctx, "first"))
	assertOnly(t, b)
}

// TestAsideWithoutRoom: a dataset that the kernel does not move is set aside beside the volumes. If it cannot be renamed
// at all, the volume stays.
func TestAsideWithoutRoom(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	k := &refusingKernel{kernel: b.zfs.kernel}
	b.zfs.kernel = k
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	k.refuses = []string{"create " + b.datasetOf(asideName), "rename " + b.datasetOf(asideName)}
	before := zfs(t, "list", "-Hr", "-t", "all", "-o", "name", b.root)
	require.Error(t, b.Remove(ctx, "base"))
	assert.Equal(t, before, zfs(t, "list", "-Hr", "-t", "all", "-o", "name", b.root))
	v, err := b.Stat(ctx, "top")
	require.NoError(t, err)
	assert.Equal(t, "base", v.Parent)

	k.refuses = []string{"rename " + b.datasetOf(asideName)}
	require.Error(t, b.Remove(ctx, "base"))
	assert.Equal(t, before, zfs(t, "list", "-Hr", "-t", "all", "-o", "name", b.root))

	k.refuses = []string{"create " + b.datasetOf(asideName)}
	require.NoError(t, b.Remove(ctx, "base"))
	v, err = b.Stat(ctx, "top")
	require.NoError(t, err)
	assert.Empty(t, v.Parent)
	assert.Equal(t, 1, retainedBy(t, b).Volumes)
	for v, err := range b.Volumes(ctx) {
		require.NoError(t, err)
		assert.Equal(t, "top", v.Name)
	}
	k.refuses = nil
	require.NoError(t, b.Remove(ctx, "top"))
	assertOnly(t, b)
	assert.Zero(t, retainedBy(t, b))
}

// refusingKernel is the real kernel, which refuses some calls for lack of space.
type refusingKernel struct {
	kernel
	refuses []string // beginnings of calls
}

func (k *refusingKernel) try(call string, do func() error) error {
	if slices.ContainsFunc(k.refuses, func(begin string) bool { return strings.HasPrefix(call, begin) }) {
		return refused(unix.ENOSPC)
	}
	return do()
}

func (k *refusingKernel) Create(name string, values zfsctl.Values) error {
	return k.try("create "+name, func() error { return k.kernel.Create(name, values) })
}

func (k *refusingKernel) Rename(name, to string) error {
	return k.try("rename "+to, func() error { return k.kernel.Rename(name, to) })
}
