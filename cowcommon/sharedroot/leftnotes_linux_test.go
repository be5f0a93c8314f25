package sharedroot_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// stuckBackend calls a function after each step that decides. With it no note can be removed after that.
type stuckBackend struct {
	*btrfs.Backend
	decided func()
}

func (b *stuckBackend) after(err error) error {
	if err == nil {
		b.decided()
	}
	return err
}

func (b *stuckBackend) Rename(ctx context.Context, name, to string) error {
	return b.after(b.Backend.Rename(ctx, name, to))
}

func (b *stuckBackend) Alone(ctx context.Context, name string, do func(root *os.File) error) error {
	return b.after(b.Backend.Alone(ctx, name, do))
}

func (b *stuckBackend) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	return b.after(b.Backend.SetLimit(ctx, name, limit))
}

func (b *stuckBackend) Exchange(ctx context.Context, name, other string) error {
	return b.after(b.Backend.Exchange(ctx, name, other))
}

func (b *stuckBackend) Remove(ctx context.Context, name string) error {
	return b.after(b.Backend.Remove(ctx, name))
}

func (b *stuckBackend) Keep(ctx context.Context, name string) (cowcommon.Kept, error) {
	k, err := b.Backend.Keep(ctx, name)
	return stuckKept{k, b}, err
}

type stuckKept struct {
	cowcommon.Kept
	b *stuckBackend
}

func (k stuckKept) Restore(ctx context.Context) error { return k.b.after(k.Kept.Restore(ctx)) }

// An operation whose deciding step is done succeeds, also if the outdated notes cannot be removed. They go later, at the latest
// when the home is closed.
func TestOutdatedNotesCannotBeRemoved(t *testing.T) {
	testfs.CheckLeaks(t)
	home := filepath.Join(testfs.Btrfs(t, testfs.WithSimpleQuota()), "home")
	inner := &stuckBackend{decided: func() {}}
	s := openStore(t, home, func() (_ cowcommon.Backend, err error) {
		inner.Backend, err = btrfs.Open(t.Context(), home, btrfs.Options{})
		return inner, err
	})
	ctx := t.Context()
	s.image("image")
	t.Cleanup(func() { sharedroot.SetFlags(t, 0, s.note(".")) }) // of a test that has failed
	stuck := func(name string, outdated []string, do func() error) {
		t.Helper()
		inner.decided = func() { sharedroot.SetFlags(t, sharedroot.Immutable, s.note(".")) }
		err := do()
		inner.decided = func() {}
		sharedroot.SetFlags(t, 0, s.note("."))
		require.NoError(t, err, name)
		for _, note := range outdated {
			_, err := os.Readlink(s.note(note))
			require.NoError(t, err, "%s: the fault has no effect", name)
		}
		require.NoError(t, s.Close())
		for _, note := range outdated {
			_, err := os.Readlink(s.note(note))
			require.ErrorIs(t, err, os.ErrNotExist, "%s: %s", name, note)
		}
		s.open()
	}
	for _, name := range []string{"renamed", "folded", "sealed", "removed", "exchanged", "restored", "limited"} {
		s.container(name, "image")
		s.edit(name, s.typical)
	}

	require.NoError(t, cowcommon.SetLimit(ctx, s.Backend, "renamed", quota.Limit{Bytes: 64 << 20}))
	stuck("rename", []string{"renamed"}, func() error { return cowcommon.Rename(ctx, s.Backend, "renamed", "new") })
	s.hasStyle("new", cowcommon.SharedRoot)
	assert.Equal(t, typicalChanges, s.changes("new", "image", true))

	stuck("fold", []string{"folded"}, func() error { return cowcommon.SetRootStyle(ctx, s.Backend, "folded", cowcommon.SnapshotRoot) })
	s.hasStyle("folded", cowcommon.SnapshotRoot)
	stuck("seal", []string{"sealed"}, func() error { return cowcommon.Seal(ctx, s.Backend, "sealed") })
	s.isSealed("sealed", cowcommon.SnapshotRoot)
	stuck("remove", []string{"removed"}, func() error { return s.Remove(ctx, "removed") })

	stuck("exchange", []string{"exchanged"}, func() error { return cowcommon.Exchange(ctx, s.Backend, "exchanged", "folded") })
	s.hasStyle("exchanged", cowcommon.SnapshotRoot)
	s.hasStyle("folded", cowcommon.SharedRoot)

	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "restored", cowcommon.SnapshotRoot))
	kept, err := cowcommon.Keep(ctx, s.Backend, "restored")
	require.NoError(t, err)
	require.NoError(t, os.Symlink("image", s.note("restored")))
	stuck("restore", []string{"restored"}, func() error {
		err := kept.Restore(ctx)
		require.NoError(t, kept.Close())
		return err
	})
	s.hasStyle("restored", cowcommon.SnapshotRoot)

	require.NoError(t, os.Symlink("8388608 layer", s.note(".limit-limited")))
	stuck("limit", []string{".limit-limited"}, func() error {
		return cowcommon.SetLimit(ctx, s.Backend, "limited", quota.Limit{Bytes: 64 << 20})
	})
	require.NoError(t, os.Symlink("67108864 layer", s.note(".limit-limited")))
	stuck("mount", []string{".limit-limited"}, func() error {
		_, err := s.Mount(ctx, "limited", "")
		if err == nil {
			err = s.Unmount(ctx, "limited")
		}
		return err
	})
	v, err := s.Stat(ctx, "limited")
	require.NoError(t, err)
	assert.Equal(t, uint64(64<<20), v.Limit.Bytes)
}

// endsWhenShared is a context that ends when a volume has its upper.
type endsWhenShared struct {
	context.Context
	upper string
}

func (c endsWhenShared) Err() error {
	if _, err := os.Lstat(c.upper); err == nil {
		return context.Canceled
	}
	return c.Context.Err()
}

// A volume that has become shared stays so, also if the noted times in its upper cannot be removed.
func TestNotedTimesCannotBeRemoved(t *testing.T) {
	s := newStore(t)
	s.image("image")
	require.NoError(t, s.Clone(t.Context(), "c", "image", cowcommon.VolumeOptions{}))
	s.edit("c", s.typical)
	var upper string
	s.inside("c", func(dir string) { upper = dir + "/.cowshed/upper" })
	require.NoError(t, cowcommon.SetRootStyle(endsWhenShared{t.Context(), upper}, s.Backend, "c", cowcommon.SharedRoot))
	s.hasStyle("c", cowcommon.SharedRoot)
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))
	require.NoError(t, cowcommon.SetRootStyle(t.Context(), s.Backend, "c", cowcommon.SnapshotRoot))
	assert.Equal(t, typicalChanges, s.changes("c", "image", false))
}
