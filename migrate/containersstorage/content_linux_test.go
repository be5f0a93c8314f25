package containersstorage

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

func names(t *testing.T, content *migrate.Content) []string {
	names, err := content.Dir.Readdirnames(-1)
	require.NoError(t, err)
	require.NoError(t, content.Close())
	return names
}

func TestContent(t *testing.T) {
	ctx := context.Background()
	for driver, form := range map[string]migrate.Form{"overlay": migrate.Overlay, "vfs": migrate.Whole, "btrfs": migrate.Whole} {
		t.Run(driver, func(t *testing.T) {
			s := newStorage(t, driver)
			s.layer("layer", "")
			source := s.open()
			content, err := source.Open(ctx, "layer")
			require.NoError(t, err)
			assert.Equal(t, form, content.Form)
			assert.Empty(t, content.Volume)
			assert.Equal(t, []string{"layer"}, names(t, content))

			_, err = source.Open(ctx, "none")
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			for _, id := range []string{"", ".", "..", "../" + driver, "a/b", "/etc"} {
				_, err = source.Open(ctx, id)
				assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, id)
				_, err = source.Parts(ctx, id)
				assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, id)
			}
		})
	}
}

func TestFuse(t *testing.T) {
	for flag, form := range map[string]migrate.Form{"true": migrate.FuseOverlay, "false": migrate.Overlay} {
		s := newStorage(t, "overlay")
		s.layer("layer", "")
		s.write("overlay/.has-mount-program", flag)
		content, err := s.open().Open(context.Background(), "layer")
		require.NoError(t, err)
		assert.Equal(t, form, content.Form)
		require.NoError(t, content.Close())
	}
}

func TestParts(t *testing.T) {
	ctx := context.Background()
	s := newStorage(t, "overlay")
	source := s.open()
	var data bytes.Buffer
	for range 2 { // pgzip writes several members
		w := gzip.NewWriter(&data)
		_, err := w.Write([]byte(`{"type":2}`))
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}
	s.write("overlay-layers/layer.tar-split.gz", data.String())
	parts, err := source.Parts(ctx, "layer")
	require.NoError(t, err)
	text, err := io.ReadAll(parts)
	require.NoError(t, err)
	assert.Equal(t, `{"type":2}{"type":2}`, string(text))
	require.NoError(t, parts.Close())

	_, err = source.Parts(ctx, "none")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	s.write("overlay-layers/damaged.tar-split.gz", "no gzip")
	_, err = source.Parts(ctx, "damaged")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.NoError(t, os.Symlink("layer.tar-split.gz", s.path("overlay-layers/link.tar-split.gz")))
	_, err = source.Parts(ctx, "link")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

// btrfsStorage is a root with layers that are subvolumes.
func btrfsStorage(t *testing.T) *storage {
	s := newStorageAt(t, filepath.Join(testfs.Btrfs(t), "storage"), "btrfs")
	require.NoError(t, os.MkdirAll(s.path("btrfs/subvolumes"), 0o700))
	for _, layer := range []string{"base", "rw"} {
		makeSubvolume(t, s.path("btrfs/subvolumes"), layer)
	}
	s.imageLayer("base", "")
	s.layer("rw", "base")
	image, _ := s.image("image", []string{"image:1"}, "base")
	s.container("container", "web", image, "rw")
	s.save()
	return s
}

func makeSubvolume(t *testing.T, dir, name string) {
	at, err := os.Open(dir)
	require.NoError(t, err)
	defer at.Close()
	require.NoError(t, btrfsctl.CreateSubvolume(int(at.Fd()), name, nil))
}

func TestSubvolumes(t *testing.T) {
	testfs.Root(t)
	s := btrfsStorage(t)
	makeSubvolume(t, s.path("btrfs/subvolumes/rw"), "nested")
	s.write("btrfs/subvolumes/rw/nested/file", "text")
	source := s.open()
	content, err := source.Open(context.Background(), "base")
	require.NoError(t, err)
	assert.Equal(t, s.path("btrfs/subvolumes/base"), content.Volume)
	assert.Equal(t, migrate.Whole, content.Form)
	require.NoError(t, content.Close())
	assert.Empty(t, s.inventory().Problems)

	require.NoError(t, source.Remove(context.Background()))
	assertRemoved(t, s)
}

// assertRemoved asserts that only podman's own files are left.
func assertRemoved(t *testing.T, s *storage) {
	entries, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	assert.Equal(t, []string{"libpod", "storage.lock", "volumes"}, left)
}

func overlayStorage(t *testing.T) *storage {
	s := newStorage(t, "overlay")
	s.imageLayer("base", "")
	s.layer("rw", "base")
	image, _ := s.image("image", []string{"image:1"}, "base")
	s.container("container", "web", image, "rw")
	s.save()
	return s
}

func TestInUse(t *testing.T) {
	testfs.Root(t)
	ctx := context.Background()
	tests := []struct {
		name string
		use  func(t *testing.T, s *storage) (end func())
	}{
		{"a lock of the storage", func(t *testing.T, s *storage) func() { return locked(t, s.path("storage.lock")) }},
		{"a lock of the layers", func(t *testing.T, s *storage) func() { return locked(t, s.path("overlay-layers/layers.lock")) }},
		{"a mounted container", func(t *testing.T, s *storage) func() {
			for _, dir := range []string{"work", "merged"} {
				require.NoError(t, os.MkdirAll(s.path("overlay/rw/"+dir), 0o755))
			}
			options := "lowerdir=" + s.path("overlay/base/diff") + ",upperdir=" + s.path("overlay/rw/diff") + ",workdir=" + s.path("overlay/rw/work")
			return mounted(t, "overlay", s.path("overlay/rw/merged"), "overlay", 0, options)
		}},
		{"a layer that is mounted elsewhere", func(t *testing.T, s *storage) func() {
			return mounted(t, s.path("overlay/base/diff"), t.TempDir(), "", unix.MS_BIND, "")
		}},
		{"conmon", func(t *testing.T, s *storage) func() {
			self, err := os.Executable()
			require.NoError(t, err)
			conmon := filepath.Join(t.TempDir(), "conmon")
			require.NoError(t, os.Symlink(self, conmon))
			command := exec.Command(conmon, "-b", s.path("overlay-containers/container/userdata"))
			command.Env = append(os.Environ(), stayEnv+"=1")
			out, err := command.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, command.Start())
			_, err = io.ReadFull(out, make([]byte, 4))
			require.NoError(t, err)
			return func() {
				require.NoError(t, command.Process.Kill())
				_ = command.Wait()
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := overlayStorage(t)
			// containers/storage leaves this mount when its program ends.
			unmount := mounted(t, s.path("overlay"), s.path("overlay"), "", unix.MS_BIND, "")
			defer unmount()
			source := s.open()
			require.NoError(t, source.InUse(ctx))
			end := test.use(t, s)
			err := source.InUse(ctx)
			assert.ErrorIs(t, err, fault.ErrInUse)
			assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			assert.ErrorIs(t, source.Remove(ctx), fault.ErrInUse)
			end()
			testfs.Free(t, func() error { return source.InUse(ctx) })
			assert.Len(t, s.inventory().Layers, 2)
		})
	}
}

// TestInUseKeepsWritersOut: nobody can change records between InUse and Close. Readers can read.
func TestInUseKeepsWritersOut(t *testing.T) {
	testfs.Root(t)
	s := overlayStorage(t)
	source, err := Open(t.Context(), Options{Dir: s.dir})
	require.NoError(t, err)
	lock := func(kind int16) error {
		file, err := os.OpenFile(s.path("overlay-layers/layers.lock"), os.O_RDWR, 0)
		require.NoError(t, err)
		defer file.Close()
		return unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind})
	}
	require.NoError(t, lock(unix.F_WRLCK))
	for range 2 {
		require.NoError(t, source.InUse(t.Context()))
		require.ErrorIs(t, lock(unix.F_WRLCK), unix.EAGAIN)
		require.NoError(t, lock(unix.F_RDLCK))
	}
	end := locked(t, s.path("storage.lock"))
	require.ErrorIs(t, source.InUse(t.Context()), fault.ErrInUse)
	require.NoError(t, lock(unix.F_WRLCK), "a source in use locks nobody out")
	end()
	require.NoError(t, source.InUse(t.Context()))
	require.NoError(t, source.Close())
	require.NoError(t, lock(unix.F_WRLCK))
}

func locked(t *testing.T, path string) (end func()) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}))
	return func() { require.NoError(t, file.Close()) }
}

func mounted(t *testing.T, source, dir, kind string, flags uintptr, options string) (end func()) {
	require.NoError(t, unix.Mount(source, dir, kind, flags, options))
	if flags&unix.MS_BIND != 0 {
		require.NoError(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
	}
	return func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) }
}

func TestRemove(t *testing.T) {
	testfs.Root(t)
	s := overlayStorage(t)
	mounted(t, s.path("overlay"), s.path("overlay"), "", unix.MS_BIND, "")
	source := s.open()
	// A call that was interrupted has left a part.
	require.NoError(t, os.RemoveAll(s.path("overlay/base")))
	require.NoError(t, os.RemoveAll(s.path("overlay-containers")))
	require.NoError(t, source.Remove(context.Background()))
	assertRemoved(t, s)
	require.NoError(t, source.Remove(context.Background()), "again")
	_, err := Open(context.Background(), Options{Dir: s.dir})
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
}

// TestRemoveFollowsNoLink: a link in the root in place of a directory is removed, and its target stays.
func TestRemoveFollowsNoLink(t *testing.T) {
	testfs.Root(t)
	s := overlayStorage(t)
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "canary"), nil, 0o600))
	source := s.open()
	require.NoError(t, os.RemoveAll(s.path("overlay")))
	require.NoError(t, os.Symlink(outside, s.path("overlay")))
	require.NoError(t, source.Remove(context.Background()))
	assertRemoved(t, s)
	assert.FileExists(t, filepath.Join(outside, "canary"))
}

// TestChangesNothing: neither listing nor looking for users writes to the root.
func TestChangesNothing(t *testing.T) {
	s := overlayStorage(t)
	list := func() map[string]unix.Timespec {
		found := map[string]unix.Timespec{}
		require.NoError(t, filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
			var stat unix.Stat_t
			require.NoError(t, unix.Lstat(path, &stat))
			found[path] = stat.Ctim
			return err
		}))
		return found
	}
	before := list()
	source := s.open()
	_, err := source.Inventory(context.Background())
	require.NoError(t, err)
	require.NoError(t, source.InUse(context.Background()))
	assert.Equal(t, before, list())
}
