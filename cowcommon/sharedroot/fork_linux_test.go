package sharedroot_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// defaults are options that name no root style.
var defaults = cowcommon.VolumeOptions{}

// testFork: the moment of a shared volume, in use or not, and its forks are shared over the same volume. Of a volume whose fold has
// begun they are not.
func testFork(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	s.edit("c", func(dir string) {
		s.typical(dir)
		require.NoError(t, cowcommon.Fork(ctx, s.Backend, "c", "moment", []string{"a", "b"}, defaults))
		require.NoError(t, os.WriteFile(dir+"/later", nil, 0o644))
	})
	s.edit("a", func(dir string) { require.NoError(t, os.WriteFile(dir+"/own", nil, 0o644)) })
	for _, name := range []string{"c", "moment", "a", "b"} {
		s.hasStyle(name, cowcommon.SharedRoot)
		v, err := s.Stat(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, name == "moment", v.Sealed, name)
	}
	for _, name := range []string{"moment", "b"} {
		assert.Equal(t, typicalChanges, s.changes(name, "image", true), name)
	}
	assert.Equal(t, []string{"A /own"}, s.changes("a", "moment", true))
	assert.Equal(t, []string{"A /later"}, s.changes("c", "moment", true))
	require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse)

	require.NoError(t, cowcommon.Fork(ctx, s.Backend, "moment", "second", []string{"plain"}, cowcommon.VolumeOptions{RootStyle: cowcommon.SnapshotRoot}))
	s.hasStyle("second", cowcommon.SharedRoot)
	s.hasStyle("plain", cowcommon.SnapshotRoot)
	assert.Equal(t, typicalChanges, s.changes("plain", "image", false))

	s.halfFolded("folding", "image")
	require.NoError(t, os.Symlink("image", s.note("fork"))) // of a volume that was removed
	require.NoError(t, cowcommon.Fork(ctx, s.Backend, "folding", "third", []string{"fork"}, defaults))
	assert.NoFileExists(t, s.note("fork"))
	for _, name := range []string{"folding", "third", "fork"} {
		s.hasStyle(name, cowcommon.SnapshotRoot)
		assert.Equal(t, typicalChanges, s.changes(name, "image", false), name)
	}
}

// testForkNot: a fork that is refused leaves neither a volume nor a note.
func testForkNot(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	s.container("taken", "image")
	require.NoError(t, s.Clone(ctx, "plain", "image", defaults))
	for _, c := range []struct {
		source string
		names  []string
		style  cowcommon.RootStyle
		want   error
	}{
		{"none", []string{"a"}, cowcommon.DefaultRoot, errdefs.ErrNotFound},
		{"c", []string{"a", "taken"}, cowcommon.DefaultRoot, errdefs.ErrAlreadyExists},
		{"c", []string{"a", "a"}, cowcommon.DefaultRoot, errdefs.ErrAlreadyExists},
		{"c", []string{"a", "with:colon"}, cowcommon.DefaultRoot, errdefs.ErrInvalidArgument},
		{"plain", []string{"a"}, cowcommon.SharedRoot, errdefs.ErrNotImplemented},
	} {
		opts := cowcommon.VolumeOptions{RootStyle: c.style}
		require.ErrorIs(t, cowcommon.Fork(ctx, s.Backend, c.source, "moment", c.names, opts), c.want, c)
		for _, name := range []string{"moment", "a"} {
			_, err := s.Stat(ctx, name)
			require.ErrorIs(t, err, errdefs.ErrNotFound, c)
			assert.NoFileExists(t, s.note(name))
		}
	}
	s.hasStyle("taken", cowcommon.SharedRoot)
}

// TestExchange exchanges volumes of each style. Styles stay with their volumes, and a volume under a shared root keeps its name.
func TestExchange(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	s.image("image")
	s.image("other")
	s.container("c", "image")
	require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, "image", "c"), fault.ErrInUse)
	require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, "c", "image"), fault.ErrInUse)
	s.edit("c", s.typical)
	exchange := func(name, other string) {
		t.Helper()
		require.NoError(t, cowcommon.Exchange(ctx, s.Backend, name, other))
	}

	s.container("d", "image")
	exchange("c", "d")
	assert.Equal(t, typicalChanges, s.changes("d", "image", true))
	assert.Empty(t, s.changes("c", "image", true))

	require.NoError(t, s.Clone(ctx, "plain", "image", defaults))
	s.mount("plain")
	require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, "d", "plain"), fault.ErrInUse)
	assert.NoFileExists(t, s.note("plain"))
	s.unmount("plain")
	for _, pair := range [][2]string{{"d", "plain"}, {"d", "plain"}, {"plain", "d"}} { // the shared one is each in turn
		exchange(pair[0], pair[1])
	}
	s.hasStyle("d", cowcommon.SnapshotRoot)
	assert.NoFileExists(t, s.note("d"))
	assert.Equal(t, typicalChanges, s.changes("plain", "image", true))

	s.container("e", "other")
	exchange("plain", "e")
	s.hasStyle("plain", cowcommon.SnapshotRoot) // a name has one note
	assert.Empty(t, s.changes("plain", "other", true))
	assert.Equal(t, typicalChanges, s.changes("e", "image", true))

	s.halfFolded("folding", "image")
	require.NoError(t, os.Symlink("8388608 layer", s.note(".limit-d")))
	exchange("folding", "d")
	assert.NoFileExists(t, s.note("folding"))
	assert.NoFileExists(t, s.note(".limit-d"))
	assert.Equal(t, typicalChanges, s.changes("d", "image", false))
	v, err := s.Stat(ctx, "folding")
	require.NoError(t, err)
	assert.Equal(t, quota.Limit{Bytes: 8 << 20}, v.Limit, "the limit stays with its volume")
}

// notUndone is a Backend that finds a volume in use after its exchange, and cannot exchange it back.
type notUndone struct{ *btrfs.Backend }

func (n notUndone) Exchange(ctx context.Context, name, other string) error {
	if err := n.Backend.Exchange(ctx, name, other); err != nil {
		return err
	}
	return fault.New(fault.ErrInUse, "mounted meanwhile")
}

// TestExchangeNotUndone: the shared volume has a note under the name that it has then.
func TestExchangeNotUndone(t *testing.T) {
	home := filepath.Join(testfs.Btrfs(t), "home")
	s, ctx := openStore(t, home, func() (cowcommon.Backend, error) {
		b, err := btrfs.Open(t.Context(), home, btrfs.Options{})
		return notUndone{b}, err
	}), t.Context()
	s.image("image")
	s.container("c", "image")
	s.edit("c", s.typical)
	require.NoError(t, s.Clone(ctx, "plain", "image", defaults))
	require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, "c", "plain"), fault.ErrInUse)
	s.hasStyle("plain", cowcommon.SharedRoot)
	s.hasStyle("c", cowcommon.SnapshotRoot)
	assert.Equal(t, typicalChanges, s.changes("plain", "image", true))
	require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse)
}

// killed is a Backend whose process ends before its Fork or Exchange, or after some of its steps.
type killed struct {
	*btrfs.Backend
	notes string // the directory of the notes
	steps int    // that are still done
}

var errKilled = errors.New("killed")

// end keeps the notes as they are now: revive undoes later changes of this process.
func (k *killed) end() error {
	return errors.Join(os.CopyFS(k.notes+".then", os.DirFS(k.notes)), errKilled)
}

func (k *killed) Fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	if k.steps > 0 {
		if err := k.Backend.Fork(ctx, source, moment, names[:k.steps-1], opts); err != nil {
			return err
		}
	}
	return k.end()
}

func (k *killed) Exchange(ctx context.Context, name, other string) error {
	if k.steps > 0 {
		if err := k.Backend.Exchange(ctx, name, other); err != nil {
			return err
		}
	}
	return k.end()
}

// newKilled makes a store whose next fork or exchange is killed after some steps.
func newKilled(t *testing.T, steps int) *store {
	t.Helper()
	home := filepath.Join(testfs.Btrfs(t, testfs.WithSimpleQuota()), "home")
	return openStore(t, home, func() (cowcommon.Backend, error) {
		b, err := btrfs.Open(t.Context(), home, btrfs.Options{})
		return &killed{b, filepath.Join(home, "shared"), steps}, err
	})
}

// revive opens the store as the killed process has left it.
func (s *store) revive() {
	s.t.Helper()
	notes := s.inner.(*killed).notes
	s.crash()
	require.NoError(s.t, os.RemoveAll(notes))
	require.NoError(s.t, os.Rename(notes+".then", notes))
	s.open()
}

// TestKilledFork: a killed fork leaves the moment with some of the forks, each complete, and no note of the others.
func TestKilledFork(t *testing.T) {
	names := []string{"moment", "a", "b"}
	for steps := range len(names) + 1 {
		s := newKilled(t, steps)
		s.image("image")
		s.container("c", "image")
		s.edit("c", s.typical)
		require.ErrorIs(t, cowcommon.Fork(t.Context(), s.Backend, "c", "moment", names[1:], defaults), errKilled)
		s.revive()
		for i, name := range names {
			if i >= steps {
				assert.NoFileExists(t, s.note(name))
				continue
			}
			s.hasStyle(name, cowcommon.SharedRoot)
			assert.Equal(t, typicalChanges, s.changes(name, "image", true), "%s after %d steps", name, steps)
		}
	}
}

// TestKilledExchange: each name has the volume of before or of after, with its root style.
func TestKilledExchange(t *testing.T) {
	for _, styles := range [][2]cowcommon.RootStyle{
		{cowcommon.SharedRoot, cowcommon.SnapshotRoot},
		{cowcommon.SnapshotRoot, cowcommon.SharedRoot},
		{cowcommon.SharedRoot, cowcommon.SharedRoot},
	} {
		for steps := range 2 {
			s, ctx := newKilled(t, steps), t.Context()
			s.image("image")
			pair := [2]string{"first", "second"}
			for i, name := range pair {
				require.NoError(t, s.Clone(ctx, name, "image", cowcommon.VolumeOptions{RootStyle: styles[i]}))
				s.edit(name, func(dir string) { require.NoError(t, os.WriteFile(dir+"/"+name, nil, 0o644)) })
			}
			require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, pair[0], pair[1]), errKilled)
			s.revive()
			for i, name := range pair {
				was := (i + steps) % 2
				s.hasStyle(name, styles[was])
				assert.Equal(t, []string{"A /" + pair[was]}, s.changes(name, "image", true), name)
			}
			require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse)
		}
	}
}
