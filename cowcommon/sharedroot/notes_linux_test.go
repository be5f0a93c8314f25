package sharedroot_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// note is the path of a note about a volume.
func (s *store) note(name string) string { return filepath.Join(s.home, "shared", name) }

// halfFolded makes a shared volume whose fold was interrupted.
func (s *store) halfFolded(name, image string) {
	s.t.Helper()
	s.container(name, image)
	s.edit(name, s.typical)
	s.inside(name, func(dir string) {
		require.NoError(s.t, os.Rename(dir+"/.cowshed/upper", dir+"/.cowshed/folding"))
	})
}

// A volume becomes shared while it waits to be renamed.
func TestSharedWhileRenamed(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	s.edit("c", s.typical)
	require.NoError(t, os.Remove(s.note("c")))
	unlock, err := namelock.All(t.Context(), homedir.LockFile(s.home), namelock.Want{Name: "c", Exclusive: true})
	require.NoError(t, err)
	renamed := make(chan error)
	go func() { renamed <- cowcommon.Rename(t.Context(), s.Backend, "c", "d") }()
	time.Sleep(200 * time.Millisecond) // it has read the note, or has not
	require.NoError(t, os.Symlink("image", s.note("c")))
	require.NoError(t, unlock())
	require.NoError(t, <-renamed)
	s.hasStyle("d", cowcommon.SharedRoot)
	assert.Equal(t, typicalChanges, s.changes("d", "image", true))
	require.ErrorIs(t, s.Remove(t.Context(), "image"), fault.ErrInUse)
}

// A rename that fails leaves no note of the new name. A shared volume gets no name that it could not be mounted with.
func TestFailedRename(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	s.mount("c")
	require.ErrorIs(t, cowcommon.Rename(ctx, s.Backend, "c", "d"), fault.ErrInUse)
	assert.NoFileExists(t, s.note("d"))
	s.unmount("c")
	require.ErrorIs(t, cowcommon.Rename(ctx, s.Backend, "c", "a:b"), errdefs.ErrInvalidArgument)
	s.hasStyle("c", cowcommon.SharedRoot)
	require.NoError(t, s.Clone(ctx, "p", "image", cowcommon.VolumeOptions{}))
	require.NoError(t, cowcommon.Rename(ctx, s.Backend, "p", "a:b"))
}

// Notes that a crash has left of a name say nothing about a later volume of that name. A privileged container could make the
// mark otherwise.
func TestNotesOfFormerVolume(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.image("plain")
	makes := map[string]func(name string) error{
		"create": func(name string) error { return s.Create(ctx, name, cowcommon.VolumeOptions{}) },
		"clone":  func(name string) error { return s.Clone(ctx, name, "plain", cowcommon.VolumeOptions{}) },
		"rename": func(name string) error {
			require.NoError(t, s.Clone(ctx, "before", "plain", cowcommon.VolumeOptions{}))
			return cowcommon.Rename(ctx, s.Backend, "before", name)
		},
	}
	for name, create := range makes {
		require.NoError(t, os.Symlink("image", s.note(name)))
		require.NoError(t, os.Symlink("8388608 layer", s.note(".limit-"+name)))
		require.NoError(t, create(name))
		s.edit(name, func(dir string) {
			own := filepath.Join(dir, sharedmark.Dir)
			require.NoError(t, os.MkdirAll(own+"/upper", 0o700))
			require.NoError(t, unix.Setxattr(own, sharedmark.Xattr, []byte("1 image"), 0))
		})
		s.hasStyle(name, cowcommon.SnapshotRoot)
		v, err := s.Stat(ctx, name)
		require.NoError(t, err)
		assert.Zero(t, v.Limit.Bytes, name)
		assert.NoFileExists(t, s.note(name))
		assert.NoFileExists(t, s.note(".limit-"+name))
	}
	require.NoError(t, s.Remove(ctx, "image"))
}

// clonedBackend calls a function after each clone.
type clonedBackend struct {
	*btrfs.Backend
	cloned func()
}

func (b *clonedBackend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	err := b.Backend.Clone(ctx, name, source, opts)
	b.cloned()
	return err
}

// A shared clone is shared, also if somebody uses it as soon as it is there.
func TestUsedWhileCloned(t *testing.T) {
	testfs.CheckLeaks(t)
	home := filepath.Join(testfs.Btrfs(t), "home")
	hooked := &clonedBackend{cloned: func() {}}
	s := openStore(t, home, func() (_ cowcommon.Backend, err error) {
		hooked.Backend, err = btrfs.Open(t.Context(), home, btrfs.Options{})
		return hooked, err
	})
	s.image("image")
	hooked.cloned = func() {
		_, err := hooked.Mount(t.Context(), "c", "")
		require.NoError(t, err)
	}
	require.NoError(t, s.Clone(t.Context(), "c", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}))
	s.hasStyle("c", cowcommon.SharedRoot)
	require.NoError(t, hooked.Unmount(t.Context(), "c"))

	hooked.cloned = func() { require.NoError(t, cowcommon.Seal(t.Context(), hooked.Backend, "sealed")) }
	err := s.Clone(t.Context(), "sealed", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot})
	require.ErrorIs(t, err, unix.EROFS)
	_, err = s.Stat(t.Context(), "sealed")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = os.Readlink(s.note("sealed"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// To change a volume that is not sealed, the notes of others are not read: here one cannot be.
func TestNotesOfOthersAreNotRead(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	require.NoError(t, os.WriteFile(s.note("unreadable"), nil, 0o600))
	require.NoError(t, cowcommon.Rename(ctx, s.Backend, "c", "d"))
	require.NoError(t, s.Remove(ctx, "d"))
	require.ErrorIs(t, s.Remove(ctx, "image"), unix.EINVAL, "a sealed volume may be a lower")
	require.NoError(t, os.Remove(s.note("unreadable")))
	require.NoError(t, s.Remove(ctx, "image"))
}

// A restore that fails leaves the note as it was, and one of a volume of style snapshot leaves none. The kept state has its limit.
func testRestoreNotes(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	require.NoError(t, os.Symlink("8388608 layer", s.note(".limit-c"))) // of a fold that a crash has ended
	shared, err := cowcommon.Keep(ctx, s.Backend, "c")
	require.NoError(t, err)
	require.NoError(t, cowcommon.SetLimit(ctx, s.Backend, "c", quota.Limit{}))
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot))
	s.mount("c")
	require.ErrorIs(t, shared.Restore(ctx), errdefs.ErrFailedPrecondition)
	assert.NoFileExists(t, s.note("c"))
	s.unmount("c")

	require.NoError(t, shared.Restore(ctx))
	require.NoError(t, shared.Close())
	s.hasStyle("c", cowcommon.SharedRoot)
	v, err := s.Stat(ctx, "c")
	require.NoError(t, err)
	assert.Equal(t, uint64(8<<20), v.Limit.Bytes)

	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot))
	plain, err := cowcommon.Keep(ctx, s.Backend, "c")
	require.NoError(t, err)
	require.NoError(t, os.Symlink("image", s.note("c")))
	require.NoError(t, plain.Restore(ctx))
	require.NoError(t, plain.Close())
	s.hasStyle("c", cowcommon.SnapshotRoot)
	_, err = os.Readlink(s.note("c"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A power cut may leave the upper without the work directory.
func testWithoutWork(t *testing.T, s *store) {
	s.image("image")
	s.container("c", "image")
	lose := func() { s.inside("c", func(dir string) { require.NoError(t, os.RemoveAll(dir+"/.cowshed/work")) }) }
	lose()
	s.edit("c", s.typical)
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))
	lose()
	spec, err := s.Backend.(cowcommon.SpecMounter).MountSpec(t.Context(), "c", false)
	if errdefs.IsNotImplemented(err) { // on ZFS
		return
	}
	require.NoError(t, err)
	s.inside("c", func(dir string) { assert.DirExists(t, dir+"/.cowshed/work") })
	assert.Contains(t, strings.Join(spec.Options, ","), "workdir=")
}

// refusingBackend refuses each limit, as ZFS does where a volume is larger.
type refusingBackend struct {
	*btrfs.Backend
	refuse bool
}

func (b *refusingBackend) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	if b.refuse {
		return fault.New(errdefs.ErrFailedPrecondition, "the volume holds more")
	}
	return b.Backend.SetLimit(ctx, name, limit)
}

// A lifted limit that cannot be restored keeps nobody from using the volume, and goes with it.
func TestLimitCannotBeRestored(t *testing.T) {
	testfs.CheckLeaks(t)
	home := filepath.Join(testfs.Btrfs(t, testfs.WithSimpleQuota()), "home")
	inner := &refusingBackend{}
	s := openStore(t, home, func() (_ cowcommon.Backend, err error) {
		inner.Backend, err = btrfs.Open(t.Context(), home, btrfs.Options{})
		return inner, err
	})
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	require.NoError(t, os.Symlink("8388608 layer", s.note(".limit-c")))
	inner.refuse = true
	require.NoError(t, s.Close())
	s.open()
	s.edit("c", s.typical)
	_, err := s.Backend.(cowcommon.SpecMounter).MountSpec(ctx, "c", false)
	require.NoError(t, err)
	require.ErrorIs(t, cowcommon.SetLimit(ctx, s.Backend, "c", quota.Limit{Bytes: 1 << 20}), errdefs.ErrFailedPrecondition)
	require.NoError(t, cowcommon.Rename(ctx, s.Backend, "c", "d"))
	assert.NoFileExists(t, s.note(".limit-c"))
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "d", cowcommon.SnapshotRoot))
	require.NoError(t, cowcommon.Rename(ctx, s.Backend, "d", "e"))
	inner.refuse = false
	s.edit("e", func(string) {})
	v, err := s.Stat(ctx, "e")
	require.NoError(t, err)
	assert.Equal(t, uint64(8<<20), v.Limit.Bytes)
}

// The note of a removed volume stays until its removal is durable.
func testNotesOfRemoved(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	require.NoError(t, s.Remove(ctx, "c"))
	_, err := os.Readlink(s.note("c"))
	require.NoError(t, err)
	s.container("again", "image")
	require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse)
	require.NoError(t, s.Remove(ctx, "again"))
	require.NoError(t, s.Remove(ctx, "image"))
	require.NoError(t, s.Close())
	links, err := os.ReadDir(s.note("."))
	require.NoError(t, err)
	assert.Empty(t, links)
	s.open()
}

// Notes of many removed volumes go together.
func TestManyRemoved(t *testing.T) {
	s := newStore(t)
	s.image("image")
	for i := range 70 {
		name := fmt.Sprint("c-", i)
		require.NoError(t, s.Clone(t.Context(), name, "image", cowcommon.VolumeOptions{}))
		require.NoError(t, os.Symlink("image", s.note(name)))
		require.NoError(t, s.Remove(t.Context(), name))
	}
	links, err := os.ReadDir(s.note("."))
	require.NoError(t, err)
	assert.Len(t, links, 6)
}

// Looking at a volume is no use that keeps others from changing it.
func TestLookingIsNoUse(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	other := &store{t: t, home: s.home, start: s.start}
	other.open()
	defer func() { require.NoError(t, other.Close()) }()
	end := make(chan struct{})
	var looking sync.WaitGroup
	for _, b := range []cowcommon.Backend{s.Backend, other.Backend} {
		looking.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					_, err := b.Stat(ctx, "c")
					assert.True(t, err == nil || errdefs.IsNotFound(err), "%v", err)
				}
			}
		})
	}
	for range 20 {
		assert.NoError(t, s.Clone(ctx, "c", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}))
		assert.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot))
		assert.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SharedRoot))
		assert.NoError(t, s.Remove(ctx, "c"))
	}
	close(end)
	looking.Wait()
}
