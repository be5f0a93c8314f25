package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// mountDead mounts a filesystem whose server never answers, as that of a network filesystem that is gone, and returns a
// descriptor of its root.
func mountDead(t *testing.T) *os.File {
	t.Helper()
	testfs.Root(t)
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		testfs.Skip(t, "needs FUSE: %v", err)
	}
	dir := t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())
	require.NoError(t, unix.Mount("dead", dir, "fuse", 0, options))
	t.Cleanup(func() {
		assert.NoError(t, server.Close()) // which ends what waits for it
		assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))
	})
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func TestHoldersBesideADeadMount(t *testing.T) {
	dead := mountDead(t)
	file := filepath.Join(t.TempDir(), "lock")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	holder := exec.Command("flock", "--shared", file, "sleep", "60")
	holder.ExtraFiles = []*os.File{dead} // which has a lower number than the lock
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, holder.Start())
	t.Cleanup(func() {
		assert.NoError(t, syscall.Kill(-holder.Process.Pid, syscall.SIGKILL))
		_ = holder.Wait()
	})

	found := make(chan []string)
	go func() {
		for {
			holders, err := holdersOf(file)
			if err != nil || len(holders) > 0 {
				found <- holders
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	select {
	case holders := <-found:
		require.Len(t, holders, 1)
		assert.Contains(t, holders[0], fmt.Sprint(holder.Process.Pid))
	case <-time.After(20 * time.Second):
		t.Error("it hangs")
	}
}
