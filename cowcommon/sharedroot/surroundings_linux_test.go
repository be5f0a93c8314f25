package sharedroot_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/mounttable"
)

// overlayOptions are the options of the overlay that is mounted on dir.
func overlayOptions(t *testing.T, dir string) string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	require.Equal(t, "overlay", mounts[0].FSType)
	return mounts[0].VFSOptions
}

// TestManyLayers: an image has 128 layers, and a shared root one lower.
func TestManyLayers(t *testing.T) {
	const layers = 128
	s := newStore(t)
	parent := ""
	for i := range layers {
		name := fmt.Sprint("layer-", i)
		if i == 0 {
			require.NoError(t, s.Create(t.Context(), name, cowcommon.VolumeOptions{}))
		} else {
			require.NoError(t, s.Clone(t.Context(), name, parent, cowcommon.VolumeOptions{}))
		}
		s.edit(name, func(dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
			require.NoError(t, os.WriteFile(dir+"/last", []byte(name), 0o644))
		})
		require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, name))
		parent = name
	}
	s.container("c", parent)
	s.edit("c", func(dir string) {
		found := mounttable.LayersOf(overlayOptions(t, dir))
		assert.Len(t, found, 3, "a lower, an upper and a work directory: %q", found)
		for i := range layers {
			assert.FileExists(t, fmt.Sprintf("%s/layer-%d", dir, i))
		}
		content, err := os.ReadFile(dir + "/last")
		require.NoError(t, err)
		assert.Equal(t, parent, string(content))
		require.NoError(t, os.Remove(dir+"/layer-0"))
	})
	assert.Equal(t, []string{"D /layer-0"}, s.changes("c", parent, true))
}

// TestFlagsOfMount: a shared root has the flags of the volumes' filesystem, so that no program is executed on one with
// noexec.
func TestFlagsOfMount(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	run := func(flags uintptr) (runs bool, found int64) {
		require.NoError(t, unix.Mount("", filepath.Dir(s.home), "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""))
		s.edit("c", func(dir string) {
			script := dir + "/script"
			require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755))
			err := exec.CommandContext(t.Context(), script).Run()
			if err != nil {
				require.ErrorIs(t, err, unix.EACCES)
			}
			var st unix.Statfs_t
			require.NoError(t, unix.Statfs(dir, &st))
			runs, found = err == nil, st.Flags&(unix.ST_NOEXEC|unix.ST_NOSUID|unix.ST_NODEV)
		})
		return runs, found
	}
	runs, found := run(0)
	assert.True(t, runs)
	assert.Zero(t, found)
	runs, found = run(unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV)
	assert.False(t, runs)
	assert.EqualValues(t, unix.ST_NOEXEC|unix.ST_NOSUID|unix.ST_NODEV, found)
	v, err := s.View(t.Context(), "c")
	require.NoError(t, err)
	require.ErrorIs(t, exec.CommandContext(t.Context(), v.Dir()+"/script").Run(), unix.EACCES, "a view too")
	require.NoError(t, v.Close())
	require.NoError(t, unix.Mount("", filepath.Dir(s.home), "", unix.MS_REMOUNT|unix.MS_BIND, ""))
}

// TestReadOnlyView: nothing in the view of a shared root can be changed, whether the overlay or the lower holds it.
func TestReadOnlyView(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	s.edit("c", s.typical)
	v, err := s.View(t.Context(), "c")
	require.NoError(t, err)
	for name, change := range map[string]func(dir string) error{
		"write to the upper": func(dir string) error { return os.WriteFile(dir+"/new/dir/file", nil, 0o600) },
		"write to the lower": func(dir string) error { return os.WriteFile(dir+"/big", nil, 0o600) },
		"make":               func(dir string) error { return os.Mkdir(dir+"/more", 0o700) },
		"remove":             func(dir string) error { return os.Remove(dir + "/big") },
		"rename":             func(dir string) error { return os.Rename(dir+"/new", dir+"/other") },
		"mode":               func(dir string) error { return os.Chmod(dir+"/etc", 0o700) },
		"owner":              func(dir string) error { return os.Chown(dir+"/etc", 1, 1) },
		"attribute":          func(dir string) error { return unix.Setxattr(dir+"/etc", "user.x", nil, 0) },
		"times":              func(dir string) error { return unix.UtimesNano(dir+"/etc", make([]unix.Timespec, 2)) },
		"remount": func(dir string) error {
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
				return unix.EROFS // overlayfs says EINVAL
			}
			return os.WriteFile(dir+"/big", nil, 0o600)
		},
	} {
		assert.ErrorIs(t, change(v.Dir()), unix.EROFS, name)
	}
	require.NoError(t, v.Close())
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))
}

// TestNested: in a container with a shared root, an overlay can have directories of the root as its lower. An image that is
// unpacked there has such directories. The upper must be on a volume, as with overlayfs in general. A home there is refused.
func TestNested(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	s.edit("c", func(dir string) {
		s.typical(dir)
		inner := t.TempDir() // as a volume of the container
		for _, name := range []string{"upper", "work", "at"} {
			require.NoError(t, os.Mkdir(filepath.Join(inner, name), 0o700))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "new", name), 0o700))
		}
		at := inner + "/at"
		mount := func(upper string) error {
			return unix.Mount("inner", at, "overlay", 0, fmt.Sprintf("lowerdir=%s/new:%s/etc,upperdir=%s/upper,workdir=%s/work", dir, dir, upper, upper))
		}
		require.ErrorIs(t, mount(dir+"/new"), unix.EINVAL, "an overlay as upper of an overlay")

		require.NoError(t, unix.Mount("tmpfs", inner, "tmpfs", 0, ""))
		for _, name := range []string{"upper", "work", "at"} {
			require.NoError(t, os.Mkdir(filepath.Join(inner, name), 0o700))
		}
		require.NoError(t, mount(inner))
		assert.FileExists(t, at+"/dir/file")
		assert.FileExists(t, at+"/deep/same")
		require.NoError(t, os.WriteFile(at+"/deep/same", []byte("changed"), 0o644))
		content, err := os.ReadFile(dir + "/etc/deep/same")
		require.NoError(t, err)
		assert.Equal(t, "same", string(content))
		require.NoError(t, unix.Unmount(at, 0))
		require.NoError(t, unix.Unmount(inner, 0))

		_, err = graphdriver.New("btrfs", graphdriver.Options{Root: dir + "/new"})
		require.ErrorIs(t, err, graphdriver.ErrPrerequisites)
	})
}

// TestMappedIDs: the kernel does not mount a shared root with mapped ids. So the snapshotter gives such containers the
// style snapshot.
func TestMappedIDs(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	holder := exec.CommandContext(t.Context(), "sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
	}
	require.NoError(t, holder.Start())
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait() // killed
	}()
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	require.NoError(t, err)
	defer users.Close()
	mapped := func(dir string) (fd int, err error) {
		fd, err = unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		require.NoError(t, err)
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())})
		return fd, err
	}
	owner := func(path string) uint32 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(path, &st))
		return st.Uid
	}
	s.edit("c", func(dir string) {
		fd, err := mapped(dir)
		require.ErrorIs(t, err, unix.EINVAL)
		require.NoError(t, unix.Close(fd))
	})

	// Mapped ids of the lower alone show in the overlay. So a copy of a file in the upper would have another owner than the
	// file has in the image.
	lower := s.mount("image")
	at := t.TempDir()
	fd, err := mapped(lower)
	require.NoError(t, err)
	require.NoError(t, unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
	require.NoError(t, unix.Close(fd))
	spec, err := s.Backend.(cowcommon.SpecMounter).MountSpec(t.Context(), "c", false)
	require.NoError(t, err)
	view := t.TempDir()
	options := strings.ReplaceAll(strings.Join(spec.Options, ","), "lowerdir="+lower+",", "lowerdir="+at+",")
	require.Contains(t, options, at)
	require.NoError(t, unix.Mount("mapped", view, "overlay", 0, strings.ReplaceAll(options, ",noatime", "")))
	assert.EqualValues(t, 100000, owner(view+"/etc/conf"))
	assert.Zero(t, owner(lower+"/etc/conf"))
	_, err = s.Mount(t.Context(), "c", "")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "it is in use")
	require.NoError(t, unix.Unmount(view, 0))
	require.NoError(t, unix.Unmount(at, 0))
	s.unmount("image")
	require.NoError(t, s.Remove(t.Context(), "c"))
}

// TestInUseByOverlay: an overlay that others have mounted over a shared root keeps the volume in use after Unmount.
func TestInUseByOverlay(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	at := t.TempDir()
	s.edit("c", func(dir string) {
		s.typical(dir)
		require.NoError(t, unix.Mount("over", at, "overlay", unix.MS_RDONLY, "lowerdir="+dir+"/etc:"+dir+"/new"))
	})
	assert.ErrorIs(t, cowcommon.Seal(t.Context(), s.Backend, "c"), errdefs.ErrFailedPrecondition)
	assert.ErrorIs(t, s.Remove(t.Context(), "c"), errdefs.ErrFailedPrecondition)
	require.NoError(t, unix.Unmount(at, 0))
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "c"))
}
