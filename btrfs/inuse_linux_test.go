package btrfs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/internal/testfs"
)

// situation mounts the volume "volume", whose subvolume is dir. end unmounts it.
type situation struct {
	mount func(t *testing.T, mnt, dir string) (end func())
	says  string // a part of the error, which says where the mount is

	listedOnly bool // /proc does not show the mount
}

func situations() map[string]situation {
	bind := func(t *testing.T, from string) (at string, end func()) {
		return mountAt(t, from, "", unix.MS_BIND, "")
	}
	tmpfsOn := func(t *testing.T, at string) (end func()) {
		t.Helper()
		require.NoError(t, unix.Mount("cover", at, "tmpfs", 0, ""))
		return func() { assert.NoError(t, unix.Unmount(at, 0)) }
	}
	inNamespace := func(script string) func(t *testing.T, mnt, dir string) func() {
		return func(t *testing.T, mnt, dir string) func() {
			_, end := testfs.InNamespace(t, "private", script, dir, t.TempDir(), mnt)
			return end
		}
	}
	return map[string]situation{
		"bind mount": {func(t *testing.T, _, dir string) func() {
			_, end := bind(t, dir)
			return end
		}, "mounted on /", false},
		"bind mount of a directory inside": {func(t *testing.T, _, dir string) func() {
			_, end := bind(t, dir+"/inside")
			return end
		}, "mounted on /", false},
		"bind mount of a file inside": {func(t *testing.T, _, dir string) func() {
			at := filepath.Join(t.TempDir(), "file")
			require.NoError(t, os.WriteFile(at, nil, 0o600))
			require.NoError(t, unix.Mount(dir+"/inside/file", at, "", unix.MS_BIND, ""))
			return func() { assert.NoError(t, unix.Unmount(at, 0)) }
		}, "mounted on /", false},
		"covered on its mount point": {func(t *testing.T, _, dir string) func() {
			at, end := bind(t, dir)
			uncover := tmpfsOn(t, at)
			return func() { uncover(); end() }
		}, "mounted on /", false},
		"covered above": {func(t *testing.T, _, dir string) func() {
			above := t.TempDir()
			at := filepath.Join(above, "at")
			require.NoError(t, os.Mkdir(at, 0o700))
			require.NoError(t, unix.Mount(dir, at, "", unix.MS_BIND, ""))
			uncover := tmpfsOn(t, above)
			return func() { uncover(); assert.NoError(t, unix.Unmount(at, 0)) }
		}, "mounted on /", false},
		"covered by a server that does not answer": {func(t *testing.T, _, dir string) func() {
			at, end := bind(t, dir)
			uncover := testfs.DeadServer(t, at)
			return func() { uncover(); end() }
		}, "mounted on /", false},
		"another mount namespace": {inNamespace(`mount --bind "$0" "$1"`), "in the mount namespace of process", false},
		"by subvolid in another mount namespace": {inNamespace(
			`mount -o "subvolid=$(btrfs inspect-internal rootid "$0")" "$(findmnt -nro SOURCE "$2" | sed 's/\[.*//')" "$1"`),
			"in the mount namespace of process", false},
		"covered in another mount namespace": {inNamespace(`mount --bind "$0" "$1"; mount -t tmpfs cover "$1"`),
			"in the mount namespace of process", false},
		"root covered in another mount namespace": {inNamespace(`mount --bind "$0" "$1"; mount -t tmpfs cover /`),
			"in the mount namespace of process", false},
		"only processes with another root in its namespace": {inNamespace(`mount --bind "$0" "$1"
			mkdir -p /dev/shm/root; mount -t tmpfs root /dev/shm/root; mkdir /dev/shm/root/bin /dev/shm/root/lib /dev/shm/root/lib64 /dev/shm/root/usr
			for d in bin lib lib64 usr; do [ ! -d /$d ] || mount --rbind /$d /dev/shm/root/$d; done
			exec chroot /dev/shm/root sh -ec 'echo ready; read wait'`), "in the mount namespace of process", false},
		"namespace without processes": {func(t *testing.T, _, dir string) func() {
			pid, end := testfs.InNamespace(t, "private", `mount --bind "$0" "$1"`, dir, t.TempDir())
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
			require.NoError(t, err)
			end()
			return func() { assert.NoError(t, ns.Close()) }
		}, "in a mount namespace without processes", true},
		"lower of an overlay": {func(t *testing.T, _, dir string) func() {
			return mountOn(t, "overlay", "overlay", 0, "lowerdir="+dir+":"+t.TempDir())
		}, "of the overlay mounted on /", false},
		"directory inside is the lower of an overlay": {func(t *testing.T, _, dir string) func() {
			return mountOn(t, "overlay", "overlay", 0, "lowerdir="+t.TempDir()+":"+dir+"/inside")
		}, "of the overlay mounted on /", false},
		"lower of an overlay by another path": {inNamespace(`mount --bind "${0%/*}" "$1"
			mkdir /dev/shm/lower /dev/shm/at 2>&- || :
			mount -t overlay -o "lowerdir=$1/volume:/dev/shm/lower" overlay /dev/shm/at`), "of the overlay mounted on /dev/shm/at", false},
		"upper of an overlay": {func(t *testing.T, _, dir string) func() {
			return mountOn(t, "overlay", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/inside,workdir=%s/work", t.TempDir(), dir, dir))
		}, "of the overlay mounted on /", false},
	}
}

// TestInUse: a volume that is mounted anywhere, even under other mounts, is neither removed, sealed nor renamed, and is
// cloned as it is. Errors name its users. Once it is unmounted, all of that succeeds.
func TestInUse(t *testing.T) {
	mnt := testfs.Btrfs(t)
	b := open(t, mnt, Options{})
	all, err := detect.InitialPIDNamespace() // elsewhere the kernel does not list all namespaces
	require.NoError(t, err)
	all = all && !testfs.KernelBefore(t, 6, 12) // which list none
	bySystem(t, b, func(t *testing.T, proc bool) {
		for name, s := range situations() {
			if !proc && all || !s.listedOnly {
				t.Run(name, func(t *testing.T) { testInUse(t, b, mnt, s) })
			}
		}
	})
}

func testInUse(t *testing.T, b *Backend, mnt string, s situation) {
	ctx := context.Background()
	require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
	dir := filepath.Join(b.home, subvolumesName, "volume")
	require.NoError(t, os.MkdirAll(dir+"/inside", 0o755))
	require.NoError(t, os.Mkdir(dir+"/work", 0o755))
	require.NoError(t, os.WriteFile(dir+"/inside/file", []byte("kept"), 0o600))
	end := s.mount(t, mnt, dir)
	for what, operation := range map[string]func() error{
		"remove": func() error { return b.Remove(ctx, "volume") },
		"seal":   func() error { return b.Seal(ctx, "volume") },
		"rename": func() error { return b.Rename(ctx, "volume", "renamed") },
	} {
		err := operation()
		if assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition, what) {
			assert.Contains(t, err.Error(), s.says, what)
		}
		require.DirExists(t, dir, what)
	}
	assert.NoError(t, b.Clone(ctx, "clone", "volume", cowcommon.VolumeOptions{}))
	v, err := b.Stat(ctx, "volume")
	require.NoError(t, err)
	assert.False(t, v.Sealed, "cloned as it is")
	content, err := os.ReadFile(dir + "/inside/file")
	require.NoError(t, err)
	assert.Equal(t, "kept", string(content))

	end()
	require.NoError(t, b.Rename(ctx, "volume", "renamed"))
	require.NoError(t, b.Seal(ctx, "renamed"))
	require.NoError(t, b.Remove(ctx, "renamed"))
	require.NoError(t, b.Remove(ctx, "clone"))
}

// TestNotInUse: mounts of other directories, also under the same names, do not prevent the removal of a volume.
func TestNotInUse(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	b := open(t, mnt, Options{})
	other := open(t, testfs.Btrfs(t), Options{})
	for _, name := range []string{"volume", "volume2", "vol"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
		require.NoError(t, other.Create(ctx, name, cowcommon.VolumeOptions{}))
	}
	path := func(b *Backend, name string) string { return filepath.Join(b.home, subvolumesName, name) }
	mountOn(t, mnt, "", unix.MS_BIND, "")
	mountOn(t, b.home, "", unix.MS_BIND, "")
	mountOn(t, path(b, ""), "", unix.MS_BIND, "")
	mountOn(t, path(b, "volume2"), "", unix.MS_BIND, "")
	mountOn(t, path(b, "vol"), "", unix.MS_BIND, "")
	mountOn(t, path(other, "volume"), "", unix.MS_BIND, "")
	mountOn(t, "overlay", "overlay", 0, "lowerdir="+path(b, "volume2")+":"+t.TempDir())
	mountOn(t, "overlay", "overlay", 0, "lowerdir="+path(b, "vol")+":"+t.TempDir())

	bySystem(t, b, func(t *testing.T, _ bool) {
		require.NoError(t, b.Rename(ctx, "volume", "renamed"))
		require.NoError(t, b.Seal(ctx, "renamed"))
		require.NoError(t, b.Remove(ctx, "renamed"))
		require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
	})
}

// TestInUseAfterRenameAbove: a mount is recognised by the present path of the volume, not by its path when the home was
// opened.
func TestInUseAfterRenameAbove(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	require.NoError(t, os.MkdirAll(mnt+"/a/b", 0o755))
	b, err := Open(t.Context(), mnt+"/a/b/home", Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
	end := mountOn(t, mnt+"/a/b/home/subvolumes/volume", "", unix.MS_BIND, "")
	require.NoError(t, os.Rename(mnt+"/a", mnt+"/moved"))
	bySystem(t, b, func(t *testing.T, _ bool) {
		assert.ErrorIs(t, b.Remove(ctx, "volume"), errdefs.ErrFailedPrecondition)
	})
	end()
	require.NoError(t, b.Remove(ctx, "volume"))
}

// TestOpenFileOutlivesVolume: an open file does not prevent the removal of its volume, and can be read and written
// after that.
func TestOpenFileOutlivesVolume(t *testing.T) {
	ctx := t.Context()
	b := open(t, testfs.Btrfs(t), Options{})
	require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
	f, err := os.Create(filepath.Join(b.home, subvolumesName, "volume", "file"))
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("kept")
	require.NoError(t, err)
	require.NoError(t, b.Remove(ctx, "volume"))
	_, err = f.WriteString(" and more")
	require.NoError(t, err)
	require.NoError(t, unix.Syncfs(int(b.fs.Fd())))
	content := make([]byte, 100)
	n, _ := f.ReadAt(content, 0)
	assert.Equal(t, "kept and more", string(content[:n]))
}

// BenchmarkRemoveBesideMounts removes volumes beside many mounts, a third of them of this filesystem. It also has many
// processes; some have a mount namespace of their own, with all these mounts.
func BenchmarkRemoveBesideMounts(b *testing.B) {
	for _, c := range []struct{ mounts, processes, namespaces int }{{0, 0, 0}, {2000, 300, 0}, {200, 300, 9}, {2000, 300, 9}} {
		b.Run(fmt.Sprintf("mounts=%d/processes=%d/namespaces=%d", c.mounts, c.processes, c.namespaces), func(b *testing.B) {
			ctx := b.Context()
			backend := open(b, testfs.Btrfs(b), Options{})
			require.NoError(b, backend.Create(ctx, "mounted", cowcommon.VolumeOptions{}))
			root := b.TempDir()
			require.NoError(b, unix.Mount("root", root, "tmpfs", 0, ""))
			b.Cleanup(func() { assert.NoError(b, unix.Unmount(root, unix.MNT_DETACH)) })
			require.NoError(b, unix.Mount("", root, "", unix.MS_PRIVATE, ""))
			for i := range c.mounts {
				at := fmt.Sprintf("%s/%d", root, i)
				require.NoError(b, os.Mkdir(at, 0o700))
				from := root
				if i%3 == 0 {
					from = filepath.Join(backend.home, subvolumesName, "mounted")
				}
				require.NoError(b, unix.Mount(from, at, "", unix.MS_BIND, ""))
			}
			for range c.namespaces {
				testfs.InNamespace(b, "private", "")
			}
			for range c.processes {
				sleep := exec.Command("sleep", "1000")
				require.NoError(b, sleep.Start())
				b.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
			}
			bySystem(b, backend, func(b *testing.B, _ bool) {
				var cpu time.Duration
				for b.Loop() {
					b.StopTimer()
					require.NoError(b, backend.Create(ctx, "volume", cowcommon.VolumeOptions{}))
					before := cpuTime(b)
					b.StartTimer()
					require.NoError(b, backend.Remove(ctx, "volume"))
					cpu += cpuTime(b) - before
				}
				b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
			})
		})
	}
}

// cpuTime is the processor time of this process. Other busy processes do not change it.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// bySystem runs a test with each way to find mounts: by the kernel's list, where the kernel has it, and by /proc alone.
func bySystem[T interface {
	testing.TB
	Run(name string, f func(T)) bool
}](t T, b *Backend, test func(t T, proc bool)) {
	t.Helper()
	t.Run("listed", func(t T) { test(t, false) })
	t.Run("proc", func(t T) {
		listed := b.mounts
		b.mounts = listed.ByProc()
		defer func() { b.mounts = listed }()
		test(t, true)
	})
}
