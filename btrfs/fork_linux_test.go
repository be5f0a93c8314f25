package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/internal/adopttest"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// content reads a file in a volume.
func content(t *testing.T, b *Backend, volume, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(tree(t, b, volume), name))
	require.NoError(t, err)
	require.NoError(t, b.Unmount(t.Context(), volume))
	return string(data)
}

// TestFork forks a volume in use and a volume that nobody uses. Neither is sealed, and both forks are native changes of
// their moment, and of the base.
func TestFork(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		b, ctx := open(t, mnt, Options{}), t.Context()
		require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
		require.NoError(t, b.Clone(ctx, "web", "base", cowcommon.VolumeOptions{}))
		put(t, b, "web", "file", "now")
		for name, use := range map[string]bool{"idle": false, "busy": true} {
			if use {
				tree(t, b, "web")
			}
			require.NoError(t, b.Fork(ctx, "web", name+".moment", []string{name + ".1", name + ".2"}, cowcommon.VolumeOptions{}))
			if use {
				require.NoError(t, b.Unmount(ctx, "web"))
			}
			put(t, b, "web", "file", "later")
			put(t, b, name+".1", "own", "own")
			assert.Equal(t, "now", content(t, b, name+".2", "file"))
			moment, err := b.Stat(ctx, name+".moment")
			require.NoError(t, err)
			assert.True(t, moment.Sealed)
			adopttest.CheckParent(t, b, name+".1", name+".moment")
			assert.Equal(t, []string{"A /own"}, adopttest.Changes(t, b, name+".1", name+".moment"))
			assert.Equal(t, []string{"A /file"}, adopttest.Changes(t, b, name+".moment", "base"))
			put(t, b, "web", "file", "now")
		}
		web, err := b.Stat(ctx, "web")
		require.NoError(t, err)
		assert.False(t, web.Sealed)

		require.NoError(t, b.Remove(ctx, "web"))
		require.NoError(t, b.Remove(ctx, "idle.moment"))
		assert.Equal(t, "now", content(t, b, "idle.1", "file"))
		assertClean(t, b, "base", "busy.1", "busy.2", "busy.moment", "idle.1", "idle.2")
	})
}

// TestForkLimit: each fork has the limit, and the moment has none.
func TestForkLimit(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t, testfs.WithSimpleQuota()), Options{}), t.Context()
	require.NoError(t, b.Create(ctx, "web", cowcommon.VolumeOptions{}))
	limit := quota.Limit{Bytes: 64 << 20}
	require.NoError(t, b.Fork(ctx, "web", "moment", []string{"fork"}, cowcommon.VolumeOptions{Limit: limit}))
	for name, want := range map[string]quota.Limit{"web": {}, "moment": {}, "fork": limit} {
		v, err := b.Stat(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, want.Bytes, v.Limit.Bytes, name)
	}
}

// TestForkFails: if a fork fails, neither the moment nor another fork is left.
func TestForkFails(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	for _, name := range []string{"web", "taken", "outer"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
	}
	outer, err := os.Open(tree(t, b, "outer"))
	require.NoError(t, err)
	defer outer.Close()
	require.NoError(t, btrfsctl.CreateSubvolume(int(outer.Fd()), "inner", nil))
	require.NoError(t, b.Unmount(ctx, "outer"))
	for _, c := range []struct {
		source, moment string
		names          []string
		want           error
	}{
		{"none", "moment", nil, errdefs.ErrNotFound},
		{"web", "taken", nil, errdefs.ErrAlreadyExists},
		{"web", "moment", []string{"fork", "taken"}, errdefs.ErrAlreadyExists},
		{"web", "moment", []string{"fork", "fork"}, errdefs.ErrAlreadyExists}, // the second fails when the first is made
		{"web", "moment", []string{"../fork"}, errdefs.ErrInvalidArgument},
		{"outer", "moment", nil, errdefs.ErrNotImplemented},
	} {
		require.ErrorIs(t, b.Fork(ctx, c.source, c.moment, c.names, cowcommon.VolumeOptions{}), c.want)
		assertClean(t, b, "outer", "taken", "web")
	}
	require.ErrorIs(t, b.CheckWhole(ctx, "outer"), errdefs.ErrNotImplemented)
	require.NoError(t, b.CheckWhole(ctx, "web"))
	require.ErrorIs(t, b.CheckWhole(ctx, "none"), errdefs.ErrNotFound)
}

// TestExchange exchanges two volumes with their limits and seals, and neither while it is in use.
func TestExchange(t *testing.T) {
	mnt := testfs.Btrfs(t, testfs.WithSimpleQuota())
	b, other, ctx := open(t, mnt, Options{}), open(t, mnt, Options{}), t.Context()
	limit := quota.Limit{Bytes: 64 << 20}
	require.NoError(t, b.Create(ctx, "a", cowcommon.VolumeOptions{Limit: limit}))
	require.NoError(t, b.Create(ctx, "b", cowcommon.VolumeOptions{}))
	put(t, b, "a", "file", "of a")
	put(t, b, "b", "file", "of b")
	require.NoError(t, b.Seal(ctx, "b"))
	tree(t, other, "a")
	require.ErrorIs(t, b.Exchange(ctx, "a", "b"), errdefs.ErrFailedPrecondition)
	require.NoError(t, other.Unmount(ctx, "a"))
	require.ErrorIs(t, b.Exchange(ctx, "a", "a"), errdefs.ErrInvalidArgument)
	require.ErrorIs(t, b.Exchange(ctx, "a", "none"), errdefs.ErrNotFound)
	require.ErrorIs(t, b.Exchange(ctx, "b", "a"), fault.ErrSealed)
	assert.Equal(t, "of b", content(t, b, "b", "file"))

	require.NoError(t, b.Exchange(ctx, "a", "b"))
	assert.Equal(t, "of a", content(t, b, "b", "file"))
	assert.Equal(t, "of b", content(t, b, "a", "file"))
	a, err := b.Stat(ctx, "a")
	require.NoError(t, err)
	assert.True(t, a.Sealed)
	assert.Zero(t, a.Limit.Bytes)
	was, err := b.Stat(ctx, "b")
	require.NoError(t, err)
	assert.False(t, was.Sealed)
	assert.Equal(t, limit.Bytes, was.Limit.Bytes)
	assertClean(t, b, "a", "b")
}

// TestMountedWhileExchanged: a program mounts a volume by its path after Exchange has looked for mounts. The volume keeps its name.
func TestMountedWhileExchanged(t *testing.T) {
	mnt := testfs.Btrfs(t)
	b, ctx := open(t, mnt, Options{}), t.Context()
	for _, name := range []string{"a", "b"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
		put(t, b, name, "file", "of "+name)
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount(b.dirs.subvolumes.Name()+"/a", dir, "", unix.MS_BIND, ""))
	require.ErrorIs(t, b.exchangeClaimed("a", "b"), fault.ErrInUse)
	// The same if nobody can say where a volume is mounted.
	fs := b.fs
	none, err := os.Open(os.DevNull)
	require.NoError(t, err)
	b.fs = none
	require.Error(t, b.exchangeClaimed("a", "b"))
	b.fs = fs
	require.NoError(t, none.Close())
	require.NoError(t, unix.Unmount(dir, 0))
	assert.Equal(t, "of a", content(t, b, "a", "file"))
	require.NoError(t, b.exchangeClaimed("a", "b"))
	assert.Equal(t, "of b", content(t, b, "a", "file"))
	assertClean(t, b, "a", "b")
}

// exchanging exchanges the volume a for another that make makes, and removes that, again and again. Meanwhile it calls look.
func exchanging(t *testing.T, b cowcommon.Backend, times int, make func(name string) error, look func() error) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, make("a"))
	var exchanged atomic.Bool
	var group errgroup.Group
	group.Go(func() error {
		defer exchanged.Store(true)
		for range times {
			if err := make("b"); err != nil {
				return err
			}
			if err := errors.Join(cowcommon.Exchange(ctx, b, "a", "b"), b.Remove(ctx, "b")); err != nil {
				return err
			}
		}
		return nil
	})
	for range 3 {
		group.Go(func() error {
			for !exchanged.Load() {
				if err := look(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// TestLookWhileExchanged: a volume that gets another content is never missing, although its former content is removed at once.
func TestLookWhileExchanged(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	create := func(name string) error { return b.Create(ctx, name, cowcommon.VolumeOptions{}) }
	exchanging(t, b, 30, create, func() error {
		_, err := b.Stat(ctx, "a")
		return err
	})
}

// TestStyleWhileExchanged: as TestLookWhileExchanged, for the root style.
func TestStyleWhileExchanged(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	shared, err := sharedroot.New(ctx, b, b.home, sharedroot.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, shared.Close()) })
	require.NoError(t, b.Create(ctx, "image", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Seal(ctx, "image"))
	clone := func(name string) error {
		return shared.Clone(ctx, name, "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot})
	}
	exchanging(t, shared, 100, clone, func() error {
		v, err := shared.Stat(ctx, "a")
		if err == nil && v.RootStyle != cowcommon.SharedRoot {
			err = fmt.Errorf("root style %q", v.RootStyle)
		}
		return err
	})
}

// TestListWhileExchanged: a listing among many volumes has the volumes that are exchanged meanwhile, once.
func TestListWhileExchanged(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	var want []string
	for n := range 500 {
		name := fmt.Sprintf("v%03d", n)
		want = append(want, name)
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
	}
	list := make(chan struct{})
	var group errgroup.Group
	group.Go(func() error {
		for range list { // one exchange while each listing is made, without the other calls of Exchange
			if err := exchangeIn(b.dirs.subvolumes, "v200", "v400"); err != nil {
				return err
			}
		}
		return nil
	})
	group.Go(func() error {
		defer close(list)
		for range 100 {
			list <- struct{}{}
			if got := volumes(t, b); !slices.Equal(want, got) {
				return fmt.Errorf("listed %d volumes", len(got))
			}
		}
		return nil
	})
	require.NoError(t, group.Wait())
}

func exchangeIn(dir *os.File, name, other string) error {
	return unix.Renameat2(int(dir.Fd()), name, int(dir.Fd()), other, unix.RENAME_EXCHANGE)
}

// TestParentWhileExchanged: a volume has a parent while that is exchanged for another.
func TestParentWhileExchanged(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	for _, name := range []string{"a", "b"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
	}
	tree(t, b, "a") // in use, so it is not sealed
	require.NoError(t, b.Clone(ctx, "child", "a", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Unmount(ctx, "a"))
	var looked atomic.Bool
	var group errgroup.Group
	group.Go(func() error {
		for !looked.Load() {
			if err := exchangeIn(b.dirs.subvolumes, "a", "b"); err != nil {
				return err
			}
		}
		return nil
	})
	group.Go(func() error {
		defer looked.Store(true)
		for range 5000 {
			v, err := b.Stat(ctx, "child")
			if err != nil {
				return err
			}
			if v.Parent != "a" && v.Parent != "b" {
				return fmt.Errorf("parent %q", v.Parent)
			}
		}
		return nil
	})
	require.NoError(t, group.Wait())
}

// TestOverlayWhileExchanged: an engine mounts a shared root by its MountSpec after Exchange has looked for mounts. The volume keeps
// its name. If the engine mounts it after the exchange, the exchange stays.
func TestOverlayWhileExchanged(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	shared, err := sharedroot.New(ctx, b, b.home, sharedroot.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, shared.Close()) })
	require.NoError(t, b.Create(ctx, "image", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Seal(ctx, "image"))
	write := func(root, data string) { require.NoError(t, os.WriteFile(root+"/file", []byte(data), 0o600)) }
	for _, name := range []string{"a", "b"} {
		require.NoError(t, shared.Clone(ctx, name, "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}))
		root, err := shared.Mount(ctx, name, "")
		require.NoError(t, err)
		write(root, "of "+name)
		require.NoError(t, shared.Unmount(ctx, name))
	}
	at := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // of a test that has failed
	mounter, ok := cowcommon.As[cowcommon.SpecMounter](shared)
	require.True(t, ok)
	mount := func(name string) {
		t.Helper()
		spec, err := mounter.MountSpec(ctx, name, false)
		require.NoError(t, err)
		options := slices.DeleteFunc(spec.Options, func(o string) bool { return o == "noatime" })
		require.NoError(t, unix.Mount(spec.Source, at, spec.Type, 0, strings.Join(options, ",")))
	}
	is := func(want string) {
		t.Helper()
		data, err := os.ReadFile(at + "/file")
		require.NoError(t, err)
		assert.Equal(t, want, string(data))
		require.NoError(t, unix.Unmount(at, 0))
	}

	for _, name := range []string{"a", "b"} {
		mount(name)
		require.ErrorIs(t, b.exchangeClaimed("a", "b"), fault.ErrInUse, name)
		write(at, "later of "+name)
		is("later of " + name)
		mount(name)
		is("later of " + name)
	}
	require.NoError(t, b.exchangeClaimed("a", "b"))
	mount("a")
	require.NoError(t, b.checkExchanged("a", "b"))
	is("later of b")
	require.NoError(t, shared.Remove(ctx, "a"))
	require.NoError(t, shared.Remove(ctx, "b"))
	assertClean(t, b, "image")
}

// TestLimitWhileExchanged: two volumes are exchanged while one gets a limit. The volume that has the name then has the limit.
func TestLimitWhileExchanged(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{Quota: quota.PolicyClassic}), t.Context()
	for _, name := range []string{"a", "b"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
	}
	exchanged := false
	exchange := sync.OnceFunc(func() {
		assert.NoError(t, b.Exchange(ctx, "a", "b"))
		exchanged = true
	})
	limit := quota.Limit{Bytes: 64 << 20}
	require.NoError(t, b.SetLimit(watched{ctx, exchange}, "a", limit)) // turns quotas on, and waits for that
	require.True(t, exchanged)
	v, err := b.Stat(ctx, "a")
	require.NoError(t, err)
	assert.Equal(t, limit, v.Limit)
}

// watched is a context that calls look when somebody waits for its end.
type watched struct {
	context.Context
	look func()
}

func (w watched) Done() <-chan struct{} {
	w.look()
	return w.Context.Done()
}

func (w watched) Err() error {
	w.look()
	return w.Context.Err()
}
