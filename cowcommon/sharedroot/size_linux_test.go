package sharedroot_test

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// TestChangesSize: the changes of a shared volume are as large as a comparison finds them, while it is in use or not.
func TestChangesSize(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.image("other")
	s.container("c", "image")
	size := func() int64 {
		t.Helper()
		got, err := cowcommon.ChangesSize(ctx, s.Backend, "c", "image")
		require.NoError(t, err)
		comparer := cowcommon.NewComparer(s.Backend, user.IdentityMapping{}, slog.New(slog.DiscardHandler))
		c, err := comparer.Compare(ctx, "c", "image", cowcommon.Auto)
		require.NoError(t, err)
		defer c.Close()
		want, err := treediff.Size(ctx, c.Dir(), c.Changes)
		require.NoError(t, err)
		assert.Equal(t, want, got)
		return got
	}
	assert.Zero(t, size())
	dir := s.mount("c")
	s.typical(dir)
	typical := size()
	assert.Positive(t, typical)
	require.NoError(t, os.MkdirAll(dir+"/new/a/b/c", 0o755))
	require.NoError(t, os.WriteFile(dir+"/new/a/b/c/file", make([]byte, 1000), 0o644))
	require.NoError(t, os.Link(dir+"/new/a/b/c/file", dir+"/new/a/link"))
	require.NoError(t, os.Symlink("/etc/conf", dir+"/new/symlink"))
	require.NoError(t, os.RemoveAll(dir+"/etc/deep"))
	require.NoError(t, os.Mkdir(dir+"/etc/deep", 0o755)) // opaque
	require.NoError(t, os.WriteFile(dir+"/etc/deep/file", make([]byte, 100), 0o644))
	assert.Equal(t, typical+1100, size())
	s.unmount("c")
	assert.Equal(t, typical+1100, size())

	notApart := func(name, base string) {
		t.Helper()
		_, err := cowcommon.ChangesSize(ctx, s.Backend, name, base)
		require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	}
	notApart("c", "other")
	notApart("image", "other")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err := cowcommon.ChangesSize(cancelled, s.Backend, "c", "image")
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot))
	notApart("c", "image")
}

// TestChangesSizeBesideChanges: files that come and go meanwhile are no error.
func TestChangesSizeBesideChanges(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	dir := s.mount("c")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
			assert.NoError(t, os.MkdirAll(dir+"/a/b/c", 0o755))
			assert.NoError(t, os.WriteFile(dir+"/a/b/c/file", nil, 0o644))
			assert.NoError(t, os.RemoveAll(dir+"/a"))
			assert.NoError(t, os.WriteFile(dir+"/a", nil, 0o644))
			assert.NoError(t, os.Remove(dir+"/a"))
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		_, err := cowcommon.ChangesSize(t.Context(), s.Backend, "c", "image")
		require.NoError(t, err)
	}
	s.unmount("c")
}
