package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestCompletionOnlyAsks completes each argument and each flag of each command while the daemon is stopped, and has left work
// for its next start. Nothing below the root changes, and no lock of it is opened.
func TestCompletionOnlyAsks(t *testing.T) {
	h := newContainersHost(t, "snapshot")
	a := at{root: h.root}
	h.cowshed("fork", web, "try")
	h.cowshed("snapshot", web, "before")
	h.cowshed("snapshot", "fork:try", "two")
	a.ok(t, "init")
	path, _ := writeImage(t, "app:1", 1)
	a.ok(t, "import", path)
	a.ok(t, "create", "box")
	rollback := []string{"__complete", "--root", h.root, "rollback", "--config", h.config, web, ""}
	assert.Contains(t, a.ok(t, rollback...), "before\n", "the daemon answers")
	h.kill()
	left := filepath.Join(h.root, "containerd/btrfs/staging/left~over")
	require.NoError(t, exec.Command("btrfs", "subvolume", "create", left).Run())

	before := stateBelow(t, h.root)
	opened := watchOpened(t, h.root)
	assert.NotContains(t, a.ok(t, rollback...), "before\n", "nobody answers")
	asked := 0
	for _, args := range completions(newRootCommand()) {
		out, errOut := bytes.Buffer{}, bytes.Buffer{}
		args = slices.Concat([]string{"__complete", "--root", h.root}, args)
		for i, arg := range args {
			args[i] = strings.ReplaceAll(arg, "CONFIG", h.config)
		}
		run(t.Context(), args, strings.NewReader(""), &out, &errOut) // there is nothing to offer for some
		asked++
	}
	assert.Greater(t, asked, 300, "all commands are asked")
	assert.Empty(t, opened())
	assert.Equal(t, before, stateBelow(t, h.root))
	assert.Contains(t, a.ok(t, "__complete", "--root", h.root, "rollback", "--config", h.config, "fork:try", ""), "two\n", "a fork needs no daemon")

	h.serve()
	assert.NoDirExists(t, left, "as the daemon's start does")
	h.stop()
}

// completions are the arguments with which a shell asks for each argument and each flag of each command.
func completions(cmd *cobra.Command) (all [][]string) {
	for _, sub := range cmd.Commands() {
		all = append(all, completions(sub)...)
	}
	path := strings.Fields(cmd.CommandPath())[1:]
	if cmd.Flags().Lookup("config") != nil {
		path = append(path, "--config", "CONFIG")
	}
	for _, args := range [][]string{
		{""}, {"-"}, {"box@"}, {web + "@"}, {"fork:try@"}, {web, ""}, {web, web + "@"}, {"fork:try", ""}, {"box", ""}, {web, "before", ""},
	} {
		all = append(all, slices.Concat(path, args))
	}
	ask := func(flag *pflag.Flag) { all = append(all, slices.Concat(path, []string{"--" + flag.Name, ""})) }
	cmd.LocalFlags().VisitAll(ask)
	cmd.InheritedFlags().VisitAll(ask)
	return all
}

// stateBelow describes all files below a directory: identity, mode, owner, size, times, and the content of files.
func stateBelow(t *testing.T, root string) (state []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		line := fmt.Sprintf("%s %d:%d %o %d:%d %d %d %v %v", path, st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim, st.Ctim)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			line += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		state = append(state, line)
		return nil
	}))
	return state
}

// watchOpened returns a function that names the locks and databases below a directory that have been opened since.
func watchOpened(t *testing.T, root string) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(fd)) })
	watched := make(map[int32]string)
	require.NoError(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		require.NoError(t, err)
		if e.Type().IsRegular() && (strings.HasSuffix(path, "lock") || strings.HasSuffix(path, ".db")) {
			n, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN)
			require.NoError(t, err)
			watched[int32(n)] = path
		}
		return nil
	}))
	require.NotEmpty(t, watched)
	return func() (opened []string) {
		events := make([]byte, 64<<10)
		n, err := unix.Read(fd, events)
		if err == unix.EAGAIN {
			return nil
		}
		require.NoError(t, err)
		for at := 0; at < n; at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[at+12:])) {
			opened = append(opened, watched[int32(binary.NativeEndian.Uint32(events[at:]))])
		}
		return opened
	}
}
