package mounttable

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

func fileIn(t *testing.T, dir string) (path string, file File) {
	t.Helper()
	path = filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(path, &stat))
	return path, File{Device: stat.Dev, Inode: stat.Ino}
}

// TestIsHeld: a file has no holder if every thread of all processes could be looked at.
func TestIsHeld(t *testing.T) {
	for name, test := range map[string]struct {
		links map[string]string // of /proc, with their targets; "file" is the file
		held  bool
		says  string // the error; "": none
	}{
		"nobody":                       {links: map[string]string{"1/task/1/fd/0": "other"}},
		"the first thread":             {links: map[string]string{"1/task/1/fd/0": "other", "1/task/1/fd/1": "file"}, held: true},
		"a thread after the first":     {links: map[string]string{"1/task/1/exe": "gone", "1/task/2/fd/0": "file"}, held: true},
		"as working directory":         {links: map[string]string{"1/task/1/cwd": "file"}, held: true},
		"the link leads to nothing":    {links: map[string]string{"1/task/1/fd/0": "gone"}},
		"a link cannot be looked at":   {links: map[string]string{"1/task/1/fd/0": "0"}, says: "1/task/1/fd/0"},
		"files cannot be listed":       {links: map[string]string{"1/task/1/fd": "file"}, says: "1/task/1/fd"},
		"threads cannot be listed":     {links: map[string]string{"1/task": "file"}, says: "1/task"},
		"a holder beside these":        {links: map[string]string{"1/task": "file", "2/task/2/fd/0": "file"}, held: true},
		"not all processes are listed": {links: map[string]string{"2/task/2/fd/0": "other"}, says: "does not show all processes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, proc := t.TempDir(), t.TempDir()
			path, file := fileIn(t, dir)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
			for link, target := range test.links {
				if target != "0" { // the name of a loop
					target = filepath.Join(filepath.Dir(path), target)
				}
				require.NoError(t, os.MkdirAll(filepath.Join(proc, filepath.Dir(link)), 0o700))
				require.NoError(t, os.Symlink(target, filepath.Join(proc, link)))
			}
			held, err := file.isHeldBelow(proc)
			assert.Equal(t, test.held, held)
			if test.says == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.says)
			}
		})
	}
	_, err := File{}.isHeldBelow("/nothing/of/that/name")
	require.Error(t, err)
}

// TestIsHeldWithoutRight: a process that may not look at others does not say that none of them holds a file.
func TestIsHeldWithoutRight(t *testing.T) {
	testfs.Root(t)
	_, file := fileIn(t, t.TempDir())
	other := exec.Command("sleep", "infinity")
	require.NoError(t, other.Start())
	defer func() { _ = other.Wait() }()
	defer func() { assert.NoError(t, other.Process.Kill()) }()
	dir := fmt.Sprintf("/proc/%d", other.Process.Pid)
	held, err := file.isHeldIn(dir)
	require.NoError(t, err)
	assert.False(t, held)

	done := make(chan error)
	go onOtherThread(func() {
		err := withoutPtrace()
		if err == nil {
			held, err = file.isHeldIn(dir)
		}
		done <- err
	})
	require.ErrorIs(t, <-done, unix.EACCES)
	assert.False(t, held)
}

// withoutPtrace takes CAP_SYS_PTRACE from this thread.
func withoutPtrace() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_PTRACE
	return unix.Capset(&header, &data[0])
}

// TestIsHeldBesideOtherUser: a file of FUSE that belongs to another user is on another device.
func TestIsHeldBesideOtherUser(t *testing.T) {
	_, file := fileIn(t, t.TempDir())
	dir := t.TempDir()
	defer testfs.DeadServerOf(t, dir, 1)()
	inside, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(inside)
	var stat unix.Statx_t
	require.ErrorIs(t, unix.Statx(inside, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &stat), unix.EACCES)
	held, err := file.isHeldIn("/proc/self")
	require.NoError(t, err)
	assert.False(t, held)
}
