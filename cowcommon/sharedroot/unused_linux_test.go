package sharedroot_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// viewingBackend lists the volumes that views are asked for.
type viewingBackend struct {
	*btrfs.Backend
	viewed []string
}

func (b *viewingBackend) View(ctx context.Context, name string) (cowcommon.View, error) {
	b.viewed = append(b.viewed, name)
	return b.Backend.View(ctx, name)
}

// newViewingStore is newStore that lists views.
func newViewingStore(t *testing.T) (*store, *viewingBackend) {
	t.Helper()
	testfs.CheckLeaks(t)
	return viewingStoreIn(t, filepath.Join(testfs.Btrfs(t), "home"))
}

func viewingStoreIn(t *testing.T, home string) (*store, *viewingBackend) {
	t.Helper()
	viewing := &viewingBackend{}
	return openStore(t, home, func() (_ cowcommon.Backend, err error) {
		viewing.Backend, err = btrfs.Open(t.Context(), home, btrfs.Options{})
		return viewing, err
	}), viewing
}

// readUnused reads a volume over image without a snapshot. do gets the path of its tree.
func (s *store) readUnused(name string, do func(ctx context.Context, dir string) error) error {
	return cowcommon.ReadUnused(s.t.Context(), s.Backend, name, "image", func(ctx context.Context, top, _ cowcommon.View) error {
		return do(ctx, top.Dir())
	})
}

// A volume that nobody uses is compared without a view of it, and nothing is mounted anywhere. The tree is that of a view.
func TestCompareUnused(t *testing.T) {
	s, viewing := newViewingStore(t)
	testCompareUnused(t, s, viewing, "image", "c")
}

// The kernel takes short paths of layers only.
func TestCompareUnusedWithLongPaths(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := testfs.Btrfs(t)
	home := filepath.Join(dir, strings.Repeat("h", 200-len(dir)-1))
	s, viewing := viewingStoreIn(t, home)
	testCompareUnused(t, s, viewing, strings.Repeat("i", 64), strings.Repeat("c", 64))
}

func testCompareUnused(t *testing.T, s *store, viewing *viewingBackend, image, c string) {
	t.Helper()
	s.image(image)
	s.container(c, image)
	s.edit(c, s.typical)
	v, err := s.View(t.Context(), c)
	require.NoError(t, err)
	want, err := treecmp.Read(v.Dir(), links)
	require.NoError(t, err)
	require.NoError(t, v.Close())
	viewing.viewed = nil

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var changes []string
	comparer := cowcommon.NewComparer(s.Backend, user.IdentityMapping{}, slog.New(slog.DiscardHandler))
	require.NoError(t, comparer.CompareUnused(t.Context(), c, image, func(_ context.Context, compared *cowcommon.Comparison) error {
		for _, change := range compared.Changes {
			changes = append(changes, change.String())
		}
		got, err := treecmp.Read(compared.Dir(), links)
		assert.Empty(t, want.Diff(got, links))
		during, readErr := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, readErr)
		assert.Equal(t, string(mounts), string(during))
		return err
	}))
	assert.Equal(t, typicalChanges, changes)
	assert.Equal(t, []string{image}, viewing.viewed)
	assert.Equal(t, cowcommon.CompareStats{Native: 1}, comparer.Stats())
	require.NoError(t, s.Remove(t.Context(), c), "it is used no longer")
}

// A volume that is used, or whose changes are not apart, is not read so.
func TestReadUnusedOfUsed(t *testing.T) {
	s, viewing := newViewingStore(t)
	ctx := t.Context()
	s.image("image")
	s.image("other")
	s.container("c", "image")
	s.container("over-other", "other")
	require.NoError(t, s.Clone(ctx, "plain", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SnapshotRoot}))
	viewing.viewed = nil
	never := func(context.Context, string) error {
		assert.Fail(t, "it was read")
		return nil
	}
	require.ErrorIs(t, s.readUnused("plain", never), errdefs.ErrNotImplemented)
	require.ErrorIs(t, s.readUnused("over-other", never), errdefs.ErrNotImplemented)
	require.ErrorIs(t, s.readUnused("absent", never), errdefs.ErrNotImplemented)
	assert.Empty(t, viewing.viewed)

	s.mount("c")
	require.ErrorIs(t, s.readUnused("c", never), fault.ErrInUse)
	s.unmount("c")

	at := t.TempDir()
	s.mountSpec("c", "", at)
	require.ErrorIs(t, s.readUnused("c", never), fault.ErrInUse)
	file, err := os.Create(at + "/file")
	require.NoError(t, err)
	require.NoError(t, unix.Unmount(at, unix.MNT_DETACH))
	require.ErrorIs(t, s.readUnused("c", never), fault.ErrInUse, "a file of an overlay that is mounted nowhere is open")
	require.NoError(t, file.Close())
	require.NoError(t, s.readUnused("c", func(_ context.Context, dir string) error {
		assert.FileExists(t, dir+"/file")
		return nil
	}))
}

// Directories that a crash has left of a reading go at the next start.
func TestReadUnusedLeavesNothing(t *testing.T) {
	s, _ := newViewingStore(t)
	s.image("image")
	s.container("c", "image")
	s.mount("c") // so that the directory of mount points stays
	left := filepath.Join(s.home, "roots/@upper-left")
	require.NoError(t, os.MkdirAll(left+"/work/work", 0o700))
	s.container("d", "image")
	require.NoError(t, s.readUnused("d", func(context.Context, string) error { return nil }))
	names := func() (names []string) {
		entries, err := os.ReadDir(filepath.Dir(left))
		require.NoError(t, err)
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return names
	}
	assert.Equal(t, []string{"@upper-left", "c"}, names())
	s.crash()
	s.open()
	s.mount("c")
	assert.Equal(t, []string{"c"}, names())
	s.unmount("c")
}

// A program that knows the MountSpec mounts the volume while it is read. The result counts for nothing.
func TestMountedWhileReadUnused(t *testing.T) {
	s, _ := newViewingStore(t)
	s.image("image")
	for _, unmounts := range []bool{true, false} {
		for _, mounted := range []string{"never", "once"} {
			name := map[bool]string{true: "u-", false: "m-"}[unmounts] + mounted
			s.container(name, "image")
			at := t.TempDir()
			if mounted == "once" { // and so there is a mark of that
				s.mountSpec(name, "", at)
				require.NoError(t, unix.Unmount(at, 0))
			}
			spec, err := s.Backend.(cowcommon.SpecMounter).MountSpec(t.Context(), name, false)
			require.NoError(t, err)
			err = s.readUnused(name, func(context.Context, string) error {
				require.NoError(t, mountBy(spec, at))
				require.NoError(t, os.WriteFile(at+"/torn", nil, 0o644))
				if unmounts {
					require.NoError(t, unix.Unmount(at, 0))
				}
				return nil
			})
			require.ErrorIs(t, err, fault.ErrInUse, name)
			if !unmounts {
				require.NoError(t, unix.Unmount(at, 0))
			}
		}
	}
}

// Others wait for the end of the reading, which comes soon.
func TestMountWaitsForReadUnused(t *testing.T) {
	s, _ := newViewingStore(t)
	s.image("image")
	s.container("c", "image")
	require.NoError(t, s.Close())
	s.longestRead = 50 * time.Millisecond
	s.open()
	other := storeAt(t, s.home)
	var ended atomic.Bool
	mounted := make(chan error, 2)
	require.ErrorIs(t, s.readUnused("c", func(ctx context.Context, dir string) error {
		for _, b := range []cowcommon.Backend{s.Backend, other.Backend} {
			go func() {
				at, err := b.Mount(t.Context(), "c", "")
				assert.True(t, ended.Load(), "it is read still")
				if err == nil {
					err = os.WriteFile(at+"/later", nil, 0o644)
				}
				mounted <- err
			}()
		}
		<-ctx.Done()
		assert.NoFileExists(t, dir+"/later")
		ended.Store(true)
		return ctx.Err()
	}), context.DeadlineExceeded)
	require.NoError(t, testfs.Receive(t, mounted))
	require.NoError(t, testfs.Receive(t, mounted))
	s.unmount("c")
	other.unmount("c")
}
