package sharedroot_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/sharedmark"
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

// A fork completes a fold first, and refuses a shared volume.
func testFork(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	none := cowcommon.VolumeOptions{}
	require.ErrorIs(t, cowcommon.Fork(ctx, s.Backend, "c", "moment", nil, none), errdefs.ErrNotImplemented)
	s.halfFolded("folding", "image")
	require.NoError(t, os.Symlink("image", s.note("fork"))) // of a volume that was removed
	require.NoError(t, cowcommon.Fork(ctx, s.Backend, "folding", "moment", []string{"fork"}, none))
	assert.NoFileExists(t, s.note("fork"))
	for _, name := range []string{"folding", "moment", "fork"} {
		s.hasStyle(name, cowcommon.SnapshotRoot)
		assert.Equal(t, typicalChanges, s.changes(name, "image", false), name)
	}
}

// Volumes are exchanged only if no note is about them, and no shared root is over them.
func TestExchange(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.image("other")
	s.container("c", "image")
	require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, "image", "other"), fault.ErrInUse)
	require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, "other", "image"), fault.ErrInUse)
	require.ErrorIs(t, cowcommon.Exchange(ctx, s.Backend, "c", "other"), errdefs.ErrNotImplemented)
	s.halfFolded("folding", "image")
	require.NoError(t, os.Symlink("8388608 layer", s.note(".limit-other")))
	require.NoError(t, cowcommon.Exchange(ctx, s.Backend, "folding", "other"))
	assert.NoFileExists(t, s.note("folding"))
	assert.NoFileExists(t, s.note(".limit-other"))
	assert.Equal(t, typicalChanges, s.changes("other", "image", false))
	v, err := s.Stat(ctx, "folding")
	require.NoError(t, err)
	assert.Equal(t, uint64(8<<20), v.Limit.Bytes, "the limit stays with its volume")
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
