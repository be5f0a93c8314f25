package scripts_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// The exit codes that the usage text of mkfs-loop.sh promises.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitForeign
	exitConflict
	exitPrerequisite
	exitAbsent
)

const (
	mib       = 1 << 20
	imageSize = 256 * mib
)

// mkfsLoop runs the script and returns its exit code and output.
func mkfsLoop(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	script, err := filepath.Abs("mkfs-loop.sh")
	require.NoError(t, err)
	cmd := exec.Command(script, args...)
	data, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), string(data)
	}
	require.NoError(t, err)
	return 0, string(data)
}

// expect runs the script and checks its exit code.
func expect(t *testing.T, code int, args ...string) string {
	t.Helper()
	got, out := mkfsLoop(t, args...)
	require.Equal(t, code, got, "mkfs-loop.sh %s: %s", strings.Join(args, " "), out)
	return out
}

// needMkfs skips the test where the script cannot make a btrfs image, which needs no root.
func needMkfs(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		if _, err := os.Stat("/usr/sbin/mkfs.btrfs"); err != nil {
			testfs.Skip(t, "needs mkfs.btrfs (package btrfs-progs)")
		}
	}
}

// newImage makes an image whose name is hard to quote and that is unmounted and deleted with the test.
func newImage(t *testing.T) string {
	t.Helper()
	needMkfs(t)
	image := filepath.Join(t.TempDir(), `odd 'name" \with $blanks`+".img")
	expect(t, exitOK, "create", image, "256M")
	return image
}

// newMount mounts a new image and returns both names.
func newMount(t *testing.T) (image, dir string) {
	t.Helper()
	testfs.Root(t)
	image = newImage(t)
	dir = filepath.Join(t.TempDir(), `mount point \ with "blanks'`)
	expect(t, exitOK, "mount", image, dir)
	t.Cleanup(func() { _, _ = mkfsLoop(t, "unmount", image) })
	return image, dir
}

func fsBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	require.EqualValues(t, unix.BTRFS_SUPER_MAGIC, st.Type)
	return int64(st.Blocks) * st.Bsize
}

func TestMkfsLoopUsage(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	for _, args := range [][]string{
		{}, {"frobnicate"},
		{"create"}, {"create", image}, {"create", image, "1G", "more"},
		{"create", image, "0"}, {"create", image, "-1G"}, {"create", image, "1.5G"}, {"create", image, "G"},
		{"create", image, "1GB"}, {"create", image, "1000"}, {"create", image, "99999999999T"},
		{"create", image, "999999999999999999999"}, {"create", image, "9000000000G"}, {"create", image, "010M"},
		{"create", "--fs", "ext4", image, "1G"}, {"create", "--fs"}, {"create", "--frob", image, "1G"},
		{"create", "--pool", "tank", image, "1G"},
		{"create", "", "1G"}, {"create", image + ".cowshed-loop", "1G"},
		{"mount", image}, {"mount", image, ""}, {"grow", image}, {"grow", image, "x"}, {"unmount"}, {"delete"},
		{"status"}, {"list", dir, dir},
	} {
		t.Run(fmt.Sprintf("%q", args), func(t *testing.T) {
			if len(args) > 0 && args[0] == "mount" || len(args) > 0 && args[0] == "unmount" {
				testfs.Root(t)
			}
			out := expect(t, exitUsage, args...)
			assert.NotEmpty(t, out)
		})
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)

	help := expect(t, exitOK, "help")
	for _, word := range []string{"create", "mount", "grow", "unmount", "delete", "status", "list", "Exit codes"} {
		assert.Contains(t, help, word)
	}
}

func TestMkfsLoopLifeCycle(t *testing.T) {
	testfs.Root(t)
	testfs.CheckLeaks(t)
	image := newImage(t)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(image, &st))
	assert.EqualValues(t, imageSize, st.Size)
	assert.Less(t, st.Blocks*512, int64(imageSize/4), "the image is sparse")

	dir := filepath.Join(t.TempDir(), "made by mount")
	for range 2 { // each step may be repeated
		expect(t, exitOK, "create", image, "256M")
		expect(t, exitOK, "mount", image, dir)
	}
	assert.InDelta(t, imageSize, fsBytes(t, dir), mib)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kept"), []byte("text"), 0o600))
	status := expect(t, exitOK, "status", image)
	assert.Contains(t, status, "filesystem: btrfs\n")
	assert.Contains(t, status, "mounted: "+dir+"\n")
	assert.Contains(t, expect(t, exitOK, "list", filepath.Dir(image)), image+"\tbtrfs\t268435456\t"+dir+"\n")

	expect(t, exitConflict, "delete", image)
	for range 2 {
		expect(t, exitOK, "unmount", image)
	}
	assert.Contains(t, expect(t, exitOK, "status", image), "mounted: no\n")
	expect(t, exitOK, "mount", image, dir)
	assert.FileExists(t, filepath.Join(dir, "kept"))
	expect(t, exitOK, "unmount", image)

	for range 2 {
		expect(t, exitOK, "delete", image)
	}
	entries, err := os.ReadDir(filepath.Dir(image))
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.Empty(t, expect(t, exitOK, "list", filepath.Dir(image)))
}

func TestMkfsLoopGrow(t *testing.T) {
	image, dir := newMount(t)
	expect(t, exitConflict, "grow", image, "128M")
	for range 2 {
		expect(t, exitOK, "grow", image, "512M")
		assert.EqualValues(t, 2*imageSize, fsBytes(t, dir), "grown while mounted")
	}
	expect(t, exitOK, "unmount", image)
	expect(t, exitOK, "grow", image, "768M")
	expect(t, exitOK, "mount", image, dir)
	assert.EqualValues(t, 3*imageSize, fsBytes(t, dir), "grown while unmounted")
	expect(t, exitConflict, "create", image, "256M")
}

func TestMkfsLoopMountConflicts(t *testing.T) {
	image, dir := newMount(t)
	expect(t, exitConflict, "mount", image, filepath.Join(t.TempDir(), "elsewhere"))
	expect(t, exitOK, "mount", image, dir)

	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o600))
	other := newImage(t)
	expect(t, exitConflict, "mount", other, full)
	expect(t, exitConflict, "mount", other, filepath.Join(full, "file"))

	held, err := os.Open(dir)
	require.NoError(t, err)
	expect(t, exitConflict, "unmount", image)
	require.NoError(t, held.Close())
	expect(t, exitOK, "unmount", image)
}

func TestMkfsLoopUnmountsEverywhere(t *testing.T) {
	image, dir := newMount(t)
	second := t.TempDir()
	require.NoError(t, unix.Mount(dir, second, "", unix.MS_BIND, ""))
	expect(t, exitOK, "unmount", image)
	mounts, err := os.ReadFile("/proc/mounts")
	require.NoError(t, err)
	assert.NotContains(t, string(mounts), second)
}

func TestMkfsLoopAbsent(t *testing.T) {
	testfs.Root(t)
	image := filepath.Join(t.TempDir(), "image")
	expect(t, exitAbsent, "mount", image, t.TempDir())
	expect(t, exitAbsent, "grow", image, "1G")
	expect(t, exitAbsent, "unmount", image)
	expect(t, exitAbsent, "status", image)
	expect(t, exitAbsent, "status", filepath.Join(image, "below"))
	expect(t, exitAbsent, "list", image)
	expect(t, exitOK, "delete", image)
}

// TestMkfsLoopLeavesOthersAlone is the promise that matters most: every command refuses files that the script did not
// make, and they stay as they were.
func TestMkfsLoopLeavesOthersAlone(t *testing.T) {
	testfs.Root(t)
	for _, tc := range []struct {
		name string
		make func(t *testing.T, image string)
	}{
		{"file", func(t *testing.T, image string) {
			require.NoError(t, os.WriteFile(image, []byte("precious"), 0o600))
		}},
		{"empty file", func(t *testing.T, image string) {
			require.NoError(t, os.WriteFile(image, nil, 0o600))
		}},
		{"btrfs made by hand", func(t *testing.T, image string) {
			mine := newImage(t)
			require.NoError(t, os.Rename(mine, image))
		}},
		{"image replaced by a file", func(t *testing.T, image string) {
			expect(t, exitOK, "create", image, "256M")
			require.NoError(t, os.WriteFile(image, []byte("precious"), 0o600))
		}},
		{"image replaced by another filesystem", func(t *testing.T, image string) {
			expect(t, exitOK, "create", image, "256M")
			mine := newImage(t)
			require.NoError(t, os.Rename(mine, image))
		}},
		{"marker replaced", func(t *testing.T, image string) {
			expect(t, exitOK, "create", image, "256M")
			require.NoError(t, os.WriteFile(image+".cowshed-loop", []byte("fs=btrfs\n"), 0o600))
		}},
		{"directory", func(t *testing.T, image string) {
			require.NoError(t, os.Mkdir(image, 0o700))
		}},
		{"symlink to an image", func(t *testing.T, image string) {
			require.NoError(t, os.Symlink(newImage(t), image))
		}},
		{"dangling symlink", func(t *testing.T, image string) {
			require.NoError(t, os.Symlink("nowhere", image))
		}},
		{"block device", func(t *testing.T, image string) {
			// Loop device 250 need not exist: the node is only looked at.
			require.NoError(t, unix.Mknod(image, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))))
		}},
		{"symlink to a block device", func(t *testing.T, image string) {
			require.NoError(t, unix.Mknod(image+".dev", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))))
			require.NoError(t, os.Symlink(image+".dev", image))
		}},
		{"fifo", func(t *testing.T, image string) {
			require.NoError(t, unix.Mkfifo(image, 0o600))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			needMkfs(t)
			image := filepath.Join(t.TempDir(), "image")
			tc.make(t, image)
			before := describe(t, image)
			mnt := t.TempDir()
			for _, args := range [][]string{
				{"create", image, "256M"}, {"mount", image, mnt}, {"grow", image, "512M"}, {"unmount", image},
				{"delete", image}, {"status", image},
			} {
				expect(t, exitForeign, args...)
				require.Equal(t, before, describe(t, image), args)
			}
			assert.NotContains(t, expect(t, exitOK, "list", filepath.Dir(image)), image+"\t")
		})
	}
}

func TestMkfsLoopForeignMarker(t *testing.T) {
	needMkfs(t)
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image+".cowshed-loop", []byte("precious"), 0o600))
	expect(t, exitForeign, "create", image, "256M")
	expect(t, exitForeign, "delete", image)
	data, err := os.ReadFile(image + ".cowshed-loop")
	require.NoError(t, err)
	assert.Equal(t, "precious", string(data))
	assert.NoFileExists(t, image)
}

func TestMkfsLoopStaleMarker(t *testing.T) {
	image := newImage(t)
	require.NoError(t, os.Remove(image))
	expect(t, exitAbsent, "status", image)
	expect(t, exitOK, "create", image, "256M")
	expect(t, exitOK, "status", image)
}

func TestMkfsLoopFailureLeavesNothing(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	expect(t, exitFailed, "create", filepath.Join(dir, "image"), "1M") // too small for btrfs
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// TestMkfsLoopConcurrent has several runs ask for the same thing.
func TestMkfsLoopConcurrent(t *testing.T) {
	testfs.Root(t)
	needMkfs(t)
	image := filepath.Join(t.TempDir(), "image")
	dir := filepath.Join(t.TempDir(), "mnt")
	for _, args := range [][]string{
		{"create", image, "256M"}, {"mount", image, dir}, {"grow", image, "512M"}, {"unmount", image}, {"delete", image},
	} {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				code, out := mkfsLoop(t, args...)
				assert.Equal(t, exitOK, code, "%v: %s", args, out)
			})
		}
		wg.Wait()
	}
	assert.NoFileExists(t, image)
}

func TestMkfsLoopNeedsRoot(t *testing.T) {
	script, err := os.ReadFile("mkfs-loop.sh")
	require.NoError(t, err)
	// The directories of t.TempDir belong to the user who runs the test; another user must get at these.
	dir, err := os.MkdirTemp("/tmp", "cowshed-test-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	copied := filepath.Join(dir, "mkfs-loop.sh")
	require.NoError(t, os.WriteFile(copied, script, 0o755))

	for _, args := range [][]string{
		{"mount", dir + "/image", dir + "/mnt"},
		{"unmount", dir + "/image"},
	} {
		cmd := exec.Command(copied, args...)
		if os.Geteuid() == 0 {
			const nobody = 65534
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
		out, err := cmd.CombinedOutput()
		exit := (*exec.ExitError)(nil)
		require.ErrorAs(t, err, &exit, "%v: %s", args, out)
		assert.Equal(t, exitPrerequisite, exit.ExitCode(), "%v: %s", args, out)
	}
	assert.NoDirExists(t, dir+"/mnt")
}

// TestMkfsLoopOnZFS is the life cycle with a pool.
func TestMkfsLoopOnZFS(t *testing.T) {
	testfs.Zpool(t)
	if _, err := exec.LookPath("zdb"); err != nil {
		testfs.Skip(t, "needs zdb (package zfsutils-linux)")
	}
	image := filepath.Join(t.TempDir(), "cowshed-loop-test.img")
	dir := filepath.Join(t.TempDir(), "mnt")
	t.Cleanup(func() { _, _ = mkfsLoop(t, "unmount", image) })
	for range 2 {
		expect(t, exitOK, "create", "--fs", "zfs", image, "256M")
	}
	expect(t, exitConflict, "create", "--fs", "btrfs", image, "256M")
	for range 2 {
		expect(t, exitOK, "mount", image, dir)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kept"), []byte("text"), 0o600))
	assert.Contains(t, expect(t, exitOK, "status", image), "pool: cowshed-loop-test\n")
	before := poolSize(t, "cowshed-loop-test")
	expect(t, exitOK, "grow", image, "1G")
	assert.Greater(t, poolSize(t, "cowshed-loop-test"), before)
	expect(t, exitConflict, "delete", image)
	expect(t, exitOK, "unmount", image)
	expect(t, exitOK, "mount", image, dir)
	assert.FileExists(t, filepath.Join(dir, "kept"))
	for range 2 {
		expect(t, exitOK, "unmount", image)
	}
	expect(t, exitOK, "delete", image)
	assert.NoFileExists(t, image)
}

func poolSize(t *testing.T, pool string) int64 {
	t.Helper()
	out, err := exec.Command("zpool", "list", "-Hp", "-o", "size", pool).Output()
	require.NoError(t, err)
	var n int64
	_, err = fmt.Sscan(string(out), &n)
	require.NoError(t, err)
	return n
}

// describe describes a name in the filesystem: its type, its first bytes and its marker, without following links.
func describe(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	text := fmt.Sprintln(info.Mode(), info.Size(), info.ModTime().UnixNano())
	if info.Mode().IsRegular() {
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, 128<<10))
		require.NoError(t, err)
		text += string(data)
	}
	marker, err := os.ReadFile(path + ".cowshed-loop")
	if err == nil {
		text += string(marker)
	}
	return text
}
