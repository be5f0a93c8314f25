package rootfs

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// mounter mounts, counts, and fails on demand.
type mounter struct {
	HostMounter
	mounts           atomic.Int32
	mount, unmount   error // returned after all has been done
	failBeforeMounts bool
}

func (m *mounter) Mount(target string, mounts ...mount.Mount) error {
	m.mounts.Add(1)
	if m.failBeforeMounts {
		return m.mount
	}
	if err := m.HostMounter.Mount(target, mounts...); err != nil {
		return err
	}
	return m.mount
}

func (m *mounter) Unmount(target string) error {
	if err := m.HostMounter.Unmount(target); err != nil {
		return err
	}
	return m.unmount
}

// ownTemp has temporary directories made where the test looks for their remains.
func ownTemp(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Empty(t, entries, "temporary directories")
	})
}

// assertInitialized asserts that a tree has the files that containers need, and that anyone can use it.
func assertInitialized(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"dev", "dev/pts", "dev/shm", "proc", "sys", "etc"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, fs.ModeDir|0o755, info.Mode(), name)
	}
	for _, name := range []string{"dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o644), info.Mode(), name)
	}
	target, err := os.Readlink(filepath.Join(dir, "etc/mtab"))
	require.NoError(t, err)
	assert.Equal(t, "/proc/mounts", target)
}

func TestInitRootFS(t *testing.T) {
	h := newHost(t)
	ownTemp(t)
	image := h.image()
	before := h.keys()
	layer := DefaultInitializer().LayerName(image)
	var m mounter

	mounts, err := InitRootFS(t.Context(), "one", image, false, h.sn, &m)
	require.NoError(t, err)
	h.mounted(mounts, func(dir string) {
		assertInitialized(t, dir)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte("one"), 0o644))
	})
	h.assertOnly(append(before, layer, "one")...)

	// The init layer is there for others too, and does not change.
	mounts, err = InitRootFS(t.Context(), "two", image, true, h.sn, &m)
	require.NoError(t, err)
	h.mounted(mounts, func(dir string) {
		assertInitialized(t, dir)
		hostname, err := os.ReadFile(filepath.Join(dir, "etc/hostname"))
		require.NoError(t, err)
		assert.Empty(t, hostname)
		assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644), unix.EROFS)
	})
	assert.EqualValues(t, 1, m.mounts.Load())
	info, err := h.real.Stat(t.Context(), "two")
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindView, info.Kind)
	assert.Equal(t, layer, info.Parent)

	for _, readonly := range []bool{false, true} {
		_, err = InitRootFS(t.Context(), "one", image, readonly, h.sn, &m)
		assert.ErrorIs(t, err, errdefs.ErrAlreadyExists)
		_, err = InitRootFS(t.Context(), "one", "", readonly, h.sn, &m)
		assert.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	}
	h.assertOnly(append(before, layer, "one", "two")...)
	mounts, err = h.real.Mounts(t.Context(), "one")
	require.NoError(t, err)
	h.mounted(mounts, func(dir string) {
		hostname, err := os.ReadFile(filepath.Join(dir, "etc/hostname"))
		require.NoError(t, err)
		assert.Equal(t, "one", string(hostname))
	})
}

// Without an image there is the init layer alone, and without an initializer the image alone.
func TestInitRootFSWith(t *testing.T) {
	h := newHost(t)
	ownTemp(t)
	mounts, err := InitRootFS(t.Context(), "scratch", "", false, h.sn, HostMounter{})
	require.NoError(t, err)
	h.mounted(mounts, func(dir string) { assertInitialized(t, dir) })
	h.assertOnly("linux-init", "scratch")

	image := h.image()
	limit := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: "8388608"})
	mounts, err = InitRootFSWith(t.Context(), "bare", image, false, h.sn, nil, Initializer{}, limit)
	require.NoError(t, err)
	h.mounted(mounts, func(dir string) { assertImage(t, dir) })
	info, err := h.real.Stat(t.Context(), "bare")
	require.NoError(t, err)
	assert.Equal(t, image.String(), info.Parent)
	assert.Equal(t, "8388608", info.Labels[snapshots.LabelSnapshotMaxSize])

	own := Initializer{Name: "own", Init: func(root string) error {
		return os.WriteFile(filepath.Join(root, "own"), nil, 0o644)
	}}
	mounts, err = InitRootFSWith(t.Context(), "initialized", image, false, h.sn, HostMounter{}, own)
	require.NoError(t, err)
	h.mounted(mounts, func(dir string) { assert.FileExists(t, filepath.Join(dir, "own")) })
	before := h.keys()
	assert.Contains(t, before, image.String()+" own")

	for name, c := range map[string]struct {
		init    Initializer
		mounter Mounter
		parent  digest.Digest
		want    error
	}{
		"no name":             {Initializer{Init: own.Init}, HostMounter{}, image, errdefs.ErrInvalidArgument},
		"no mounter":          {own, nil, image, errdefs.ErrInvalidArgument},
		"no parent":           {own, HostMounter{}, digest.FromString("-"), errdefs.ErrNotFound},
		"no parent, no init":  {Initializer{}, nil, digest.FromString("-"), errdefs.ErrNotFound},
		"parent is active":    {own, HostMounter{}, "bare", errdefs.ErrInvalidArgument},
		"init layer is taken": {Initializer{Name: "bare", Init: own.Init}, HostMounter{}, "", errdefs.ErrFailedPrecondition},
	} {
		_, err := InitRootFSWith(t.Context(), "new", c.parent, false, h.sn, c.mounter, c.init)
		assert.ErrorIs(t, err, c.want, name)
		assert.ErrorContains(t, err, "new", name)
		h.assertOnly(before...)
	}
}

// An error leaves nothing mounted and no snapshot, neither of the init layer nor of the container.
func TestInitRootFSFails(t *testing.T) {
	h := newHost(t)
	image := h.image()
	before := h.keys()
	for name, c := range map[string]struct {
		mounter     *mounter
		init        func(cancel func()) error
		fault, lost func(op, key string) error
		want        error
	}{
		"mount fails":              {mounter: &mounter{mount: errFault, failBeforeMounts: true}, want: errFault},
		"mount fails when done":    {mounter: &mounter{mount: errFault}, want: errFault},
		"unmount complains":        {mounter: &mounter{unmount: errFault}, want: errFault},
		"init fails":               {init: func(func()) error { return errFault }, want: errFault},
		"init is cancelled":        {init: func(cancel func()) error { cancel(); return nil }, want: context.Canceled},
		"prepare loses answer":     {lost: failing("prepare"), want: errFault},
		"commit fails":             {fault: failing("commit"), want: errFault},
		"container fails":          {fault: failingFor("prepare", "container"), want: errFault},
		"stat fails":               {fault: failing("stat"), want: errFault},
		"stat of init layer fails": {fault: failingFor("stat", DefaultInitializer().LayerName(image)), want: errFault},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			ownTemp(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			h.sn.fault, h.sn.lost = c.fault, c.lost
			if c.mounter == nil {
				c.mounter = &mounter{}
			}
			init := DefaultInitializer()
			init.Init = func(root string) error {
				if err := initLinux(root); err != nil || c.init == nil {
					return err
				}
				return c.init(cancel)
			}
			mounts, err := InitRootFSWith(ctx, "container", image, false, h.sn, c.mounter, init)
			assert.ErrorIs(t, err, c.want)
			assert.Empty(t, mounts)
			h.assertOnly(before...)
		})
	}
	t.Run("init panics", func(t *testing.T) {
		testfs.CheckLeaks(t)
		ownTemp(t)
		h.sn.fault, h.sn.lost = nil, nil
		init := Initializer{Name: "panic", Init: func(string) error { panic(errFault) }}
		assert.PanicsWithValue(t, errFault, func() {
			_, _ = InitRootFSWith(t.Context(), "container", image, false, h.sn, HostMounter{}, init)
		})
		h.assertOnly(before...)
	})
}

// failingFor lets the requests of one kind for one snapshot fail.
func failingFor(op, key string) func(string, string) error {
	return func(gotOp, gotKey string) error {
		if gotOp == op && gotKey == key {
			return errFault
		}
		return nil
	}
}

// A container that cannot be made does not take the init layer from others.
func TestInitRootFSKeepsLayerOfOthers(t *testing.T) {
	h := newHost(t)
	ownTemp(t)
	image := h.image()
	before := h.keys()
	layer := DefaultInitializer().LayerName(image)
	h.sn.fault = func(op, key string) error {
		if op != "prepare" || key != "slow" {
			return nil
		}
		_, err := InitRootFS(t.Context(), "fast", image, false, h.real, HostMounter{})
		require.NoError(t, err)
		return errFault
	}
	_, err := InitRootFS(t.Context(), "slow", image, false, h.sn, HostMounter{})
	assert.ErrorIs(t, err, errFault)
	assert.NotContains(t, err.Error(), "remove")
	h.assertOnly(append(before, layer, "fast")...)
}

// An init layer that is garbage-collected before the container is made is made again, but not for ever.
func TestInitRootFSWhileLayerVanishes(t *testing.T) {
	h := newHost(t)
	ownTemp(t)
	image := h.image()
	before := h.keys()
	layer := DefaultInitializer().LayerName(image)
	vanish := 1
	h.sn.lost = func(op, key string) error {
		if op == "commit" && key == layer && vanish > 0 {
			vanish--
			return h.real.Remove(t.Context(), key)
		}
		return nil
	}
	var m mounter
	_, err := InitRootFS(t.Context(), "container", image, false, h.sn, &m)
	require.NoError(t, err)
	assert.EqualValues(t, 2, m.mounts.Load())
	h.assertOnly(append(before, layer, "container")...)

	require.NoError(t, h.real.Remove(t.Context(), "container"))
	require.NoError(t, h.real.Remove(t.Context(), layer))
	vanish = 1000
	_, err = InitRootFS(t.Context(), "container", image, false, h.sn, &m)
	assert.ErrorIs(t, err, errdefs.ErrUnavailable)
	h.assertOnly(before...)
}

// Containers of one image that are made at once share an init layer, which all of them make; of those with one name,
// one is made.
func TestInitRootFSConcurrently(t *testing.T) {
	h := newHost(t)
	ownTemp(t)
	image := h.image()
	before := h.keys()
	names := []string{"a", "b", "c", "d", "e", "f"}
	making := newBarrier(2 * len(names))
	init := Initializer{Name: "init", Init: func(root string) error {
		return making.wait(t.Context())
	}}
	var made [2]atomic.Int32
	var group errgroup.Group
	for _, name := range names {
		for range 2 {
			group.Go(func() error {
				_, err := InitRootFSWith(t.Context(), name, image, false, h.sn, HostMounter{}, init)
				switch {
				case err == nil:
					made[0].Add(1)
				case errdefs.IsAlreadyExists(err):
					made[1].Add(1)
				default:
					return err
				}
				return nil
			})
		}
	}
	require.NoError(t, group.Wait())
	assert.EqualValues(t, len(names), made[0].Load())
	assert.EqualValues(t, len(names), made[1].Load())
	h.assertOnly(append(append(before, init.LayerName(image)), names...)...)
}

// An image cannot have anything made outside of it, and its files stay.
func TestInitOfHostileImages(t *testing.T) {
	testfs.Root(t)
	for name, c := range map[string]struct {
		dirs, files []string
		links       map[string]string // "OUT" is a directory outside
		want        map[string]string // the files afterwards: "dir", "file", or the target of a link
	}{
		"absolute link within": {
			dirs: []string{"usr/etc"}, links: map[string]string{"etc": "/usr/etc"},
			want: map[string]string{"etc": "/usr/etc", "usr/etc/hosts": "file", "usr/etc/mtab": "/proc/mounts"},
		},
		"absolute link in a directory": {
			dirs: []string{"a", "real/etc"}, links: map[string]string{"etc": "a/etc", "a/etc": "/real/etc"},
			want: map[string]string{"etc": "a/etc", "real/etc/hosts": "file"},
		},
		"link above the root": {
			dirs: []string{"usr/etc"}, links: map[string]string{"etc": "../../../usr/./etc/"},
			want: map[string]string{"etc": "../../../usr/./etc/", "usr/etc/hosts": "file"},
		},
		"link to outside": {
			links: map[string]string{"etc": "OUT", "dev": "OUT/x"},
			want:  map[string]string{"etc": "dir", "etc/hosts": "file", "dev": "dir", "dev/pts": "dir"},
		},
		"link out of a directory": {
			dirs: []string{"etc"}, links: map[string]string{"etc/hosts": "OUT/hosts", "etc/resolv.conf": "../run/resolv.conf", "etc/mtab": "OUT/m"},
			want: map[string]string{"etc/hosts": "OUT/hosts", "etc/resolv.conf": "../run/resolv.conf", "etc/mtab": "OUT/m"},
		},
		"link to itself": {
			links: map[string]string{"proc": "proc", "sys": "a", "a": "b", "b": "a"},
			want:  map[string]string{"proc": "dir", "sys": "dir", "a": "b"},
		},
		"link through a file": {
			files: []string{"file"}, links: map[string]string{"dev": "file/dev"},
			want: map[string]string{"dev": "dir", "file": "file"},
		},
		"files for directories, directories for files": {
			files: []string{"dev", "proc"}, dirs: []string{"etc/hosts"},
			want: map[string]string{"dev": "dir", "dev/shm": "dir", "proc": "dir", "etc/hosts": "dir"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			root, out := t.TempDir(), t.TempDir()
			require.NoError(t, os.Chown(root, 7, 8))
			replace := func(target string) string {
				return strings.Replace(target, "OUT", out, 1)
			}
			existing := make(map[string]bool)
			for _, dir := range c.dirs {
				require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o700))
			}
			for _, file := range c.files {
				require.NoError(t, os.WriteFile(filepath.Join(root, file), []byte("image"), 0o600))
			}
			for link, target := range c.links {
				require.NoError(t, os.Symlink(replace(target), filepath.Join(root, link)))
			}
			require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
				existing[path] = true
				return err
			}))
			umask := syscall.Umask(0o077)
			defer syscall.Umask(umask)
			for range 2 { // and again, which changes nothing
				require.NoError(t, initLinux(root))
				for name, want := range c.want {
					path := filepath.Join(root, name)
					info, err := os.Lstat(path)
					require.NoError(t, err, name)
					switch want {
					case "dir":
						assert.True(t, info.IsDir(), name)
					case "file":
						assert.True(t, info.Mode().IsRegular(), name)
					default:
						target, err := os.Readlink(path)
						require.NoError(t, err, name)
						assert.Equal(t, replace(want), target, name)
					}
					if !existing[path] {
						stat := info.Sys().(*syscall.Stat_t)
						assert.Equal(t, []uint32{7, 8}, []uint32{stat.Uid, stat.Gid}, name)
						assert.Equal(t, map[string]fs.FileMode{"dir": 0o755, "file": 0o644, "/proc/mounts": 0o777}[want], info.Mode().Perm(), name)
					}
				}
			}
			entries, err := os.ReadDir(out)
			require.NoError(t, err)
			assert.Empty(t, entries, "outside")
		})
	}
}
