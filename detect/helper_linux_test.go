package detect

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/testfs"
)

// mount mounts a filesystem on a fresh directory for the length of the test.
func mount(t *testing.T, source, fstype string, flags uintptr, data string) string {
	t.Helper()
	testfs.Root(t)
	dir := t.TempDir()
	mountOn(t, dir, source, fstype, flags, data)
	return dir
}

func mountOn(t *testing.T, dir, source, fstype string, flags uintptr, data string) {
	t.Helper()
	err := unix.Mount(source, dir, fstype, flags, data)
	if errors.Is(err, unix.ENODEV) {
		testfs.Skip(t, "needs a kernel with %s", fstype)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)) })
}

// ext4 makes and mounts one for the length of the test.
func ext4(t *testing.T) string {
	t.Helper()
	testfs.Root(t)
	mkfs, err := admintool.Look("mkfs.ext4")
	if err != nil {
		testfs.Skip(t, "needs mkfs.ext4 (package e2fsprogs): %v", err)
	}
	image := filepath.Join(t.TempDir(), "ext4.img")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 16<<20))
	out, err := exec.Command(mkfs, "-q", image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	dir := t.TempDir()
	// The loop device goes with the mount.
	out, err = exec.Command("mount", "-o", "loop", image, dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)) })
	return dir
}

// resolved is the path without symbolic links, as the kernel shows it.
func resolved(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	require.NoError(t, err)
	return path
}

const childEnv = "COWSHED_TEST_DETECT_DIR"

// nestedUserNamespace is a process of uid 0 in a user namespace of its own.
var nestedUserNamespace = syscall.SysProcAttr{
	Cloneflags:  syscall.CLONE_NEWUSER,
	UidMappings: []syscall.SysProcIDMap{{Size: 1}},
	GidMappings: []syscall.SysProcIDMap{{Size: 1}},
}

// inChild runs the test again in a process with those attributes and returns true; the test calls it first
// and does its work when it returns false, with the directory that the parent has given it.
func inChild(t *testing.T, attr syscall.SysProcAttr, dir func() string) (childDir string, parent bool) {
	t.Helper()
	if dir := os.Getenv(childEnv); dir != "" {
		return dir, false
	}
	testfs.Root(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), childEnv+"="+dir())
	cmd.Dir = "/"
	cmd.SysProcAttr = &attr
	out, err := cmd.CombinedOutput()
	if attr.Cloneflags != 0 && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC)) {
		testfs.Skip(t, "needs nested user namespaces: %v", err)
	}
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	return "", true
}
