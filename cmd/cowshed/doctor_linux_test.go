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

func TestHoldersBesideADeadMount(t *testing.T) {
	dir := t.TempDir()
	testfs.DeadServer(t, dir)
	dead, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = dead.Close() })
	file := filepath.Join(t.TempDir(), "lock")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	holder := exec.Command("flock", "--shared", file, "sleep", "1000")
	holder.ExtraFiles = []*os.File{dead} // its number is lower than the lock's
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	testfs.Start(t, holder)
	t.Cleanup(func() { assert.NoError(t, syscall.Kill(-holder.Process.Pid, syscall.SIGKILL)) })

	found := make(chan []string, 1)
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
	holders := testfs.Receive(t, found)
	require.Len(t, holders, 1)
	assert.Contains(t, holders[0], fmt.Sprint(holder.Process.Pid))
}
