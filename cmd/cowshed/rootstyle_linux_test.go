package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestRootStyleOfDriver(t *testing.T) {
	a := newStore(t)
	var status map[string]string
	a.json(t, &status, "status")
	assert.Equal(t, "snapshot", status["Root Style"])
	a.json(t, &status, "status", "--storage-opt", "btrfs.root_style=shared")
	assert.Equal(t, "shared", status["Root Style"])
}

func isOverlay(t *testing.T, dir string) bool {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	return fs.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// TestRemoveOfShared: a fork keeps the layer that its root shares, also after the layer that it was forked from is gone.
func TestRemoveOfShared(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "base")
	a.ok(t, "create", "web", "--parent", "base", "--root-style", "shared", "--storage-opt", "btrfs.root_style=shared")
	a.ok(t, "fork", "web", "fork")
	a.ok(t, "rm", "web")
	r := a.run(t, "rm", "base")
	assert.Equal(t, exitPrecondition, r.code)
	assert.Contains(t, r.err, "layer base is the parent of fork")
	a.ok(t, "rm", "base", "fork")
	assert.NotContains(t, a.ok(t, "ls"), "base")
}

// TestRemoveOfSharedMeanwhile: others at work keep a moment whose layer is gone. Removing the layer that its root shares waits for
// them.
func TestRemoveOfSharedMeanwhile(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "base")
	a.ok(t, "create", "web", "--parent", "base", "--root-style", "shared", "--storage-opt", "btrfs.root_style=shared")
	a.ok(t, "create", "other", "--parent", "base", "--root-style", "shared")
	a.ok(t, "snapshot", "web", "one")
	path := filepath.Join(a.root, "live/btrfs/.lock")
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, flock.Shared(t.Context(), other))
	a.ok(t, "rm", "web")
	assert.Equal(t, exitPrecondition, a.run(t, "rm", "base", "--force").code, "a layer shares it too, and nothing waits")
	a.ok(t, "rm", "other")

	ended := make(chan result, 1)
	go func() { ended <- a.run(t, "rm", "base") }()
	require.Eventually(t, func() bool { return timesOpen(t, path) > 1 || len(ended) > 0 }, testfs.Patience, time.Millisecond)
	require.NoError(t, flock.Release(other))
	r := <-ended
	assert.Zero(t, r.code, r.err)
	assert.Empty(t, a.ok(t, "ls", "--names"))
	assert.NoDirExists(t, filepath.Join(a.root, "btrfs/subvolumes/base"))
}

// timesOpen is how many descriptors of this process have a file open.
func timesOpen(t *testing.T, path string) (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	assert.NoError(t, err)
	for _, entry := range entries {
		if open, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name())); err == nil && open == path {
			n++
		}
	}
	return n
}

// TestSharedRoot: a layer with a shared root is mounted, compared, applied to and copied as any other.
func TestSharedRoot(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "base")
	a.with(t, "base", func(dir string) {
		write(t, filepath.Join(dir, "file"), "base")
		write(t, filepath.Join(dir, "gone"), "base")
	})
	r := a.run(t, "create", "web", "--parent", "base", "--root-style", "shared")
	assert.NotZero(t, r.code)
	assert.Contains(t, r.err, "root_style=shared", "shared roots are off")
	a.ok(t, "create", "web", "--parent", "base", "--root-style", "shared", "--storage-opt", "btrfs.root_style=shared")
	a.with(t, "web", func(dir string) {
		assert.True(t, isOverlay(t, dir))
		write(t, filepath.Join(dir, "file"), "changed")
		write(t, filepath.Join(dir, "new"), "new")
		require.NoError(t, os.Remove(filepath.Join(dir, "gone")))
	})
	const changes = "C /file\nD /gone\nA /new\n"
	assert.Equal(t, changes, a.ok(t, "changes", "web"))
	assert.Equal(t, changes, a.ok(t, "changes", "web", "--walk"))
	tarball := filepath.Join(t.TempDir(), "web.tar")
	a.ok(t, "diff", "web", "-o", tarball)
	a.ok(t, "create", "copy", "--parent", "base", "--read-write", "--storage-opt", "btrfs.root_style=shared")
	a.ok(t, "apply", "copy", tarball)
	assert.Equal(t, changes, a.ok(t, "changes", "copy"))
	assert.Empty(t, a.ok(t, "changes", "copy", "web"))

	one, two := t.TempDir(), t.TempDir()
	a.ok(t, "mount", "web", one)
	a.ok(t, "mount", "web", two)
	write(t, filepath.Join(one, "through one"), "text")
	assert.FileExists(t, filepath.Join(two, "through one"), "both show the same tree")
	assert.Contains(t, a.ok(t, "changes", "web"), "A /through one\n")
	r = a.run(t, "rm", "web")
	assert.Equal(t, exitPrecondition, r.code)
	assert.Contains(t, r.err, one)
	a.ok(t, "create", "fork", "--parent", "web")
	a.ok(t, "unmount", one)
	write(t, filepath.Join(two, "later"), "text")
	a.ok(t, "unmount", "web")
	assert.NoFileExists(t, filepath.Join(two, "file"))
	assert.Equal(t, exitNotFound, a.run(t, "unmount", "web").code)
	a.with(t, "fork", func(dir string) {
		assert.False(t, isOverlay(t, dir))
		assert.FileExists(t, filepath.Join(dir, "through one"))
		assert.NoFileExists(t, filepath.Join(dir, "later"))
	})

	r = a.run(t, "rm", "base")
	assert.Equal(t, exitPrecondition, r.code)
	assert.Contains(t, r.err, "web")
	a.ok(t, "create", "child", "--parent", "web")
	assert.Equal(t, "web\n", strings.TrimPrefix(a.ok(t, "ls", "--names"), "base\nchild\ncopy\nfork\n"))
	a.with(t, "web", func(dir string) {
		assert.False(t, isOverlay(t, dir), "it has become an image")
		assert.FileExists(t, filepath.Join(dir, "later"))
	})
	a.ok(t, "rm", "child", "fork", "copy", "web", "base")
}

// TestSharedRootLive: a layer with a shared root is forked, rolled back, merged and promoted while it is mounted, as any other.
func TestSharedRootLive(t *testing.T) {
	a := newStore(t)
	path, _ := writeImage(t, "app:1", 2)
	a.ok(t, "import", path, "--name", "app:1")
	a.ok(t, "create", "web", "--parent", "app:1", "--root-style", "shared", "--storage-opt", "btrfs.root_style=shared")
	at, fork := t.TempDir(), t.TempDir()
	a.ok(t, "mount", "web", at)
	write(t, filepath.Join(at, "file"), "1")
	assert.Equal(t, "one\n", a.ok(t, "snapshot", "web", "one"))
	a.ok(t, "fork", "web", "fork", "--mount-at", fork)
	assert.True(t, isOverlay(t, fork), "it shares the image too")
	write(t, filepath.Join(fork, "of-fork"), "2")
	write(t, filepath.Join(at, "file"), "3")
	assert.Equal(t, "web:1\n", a.ok(t, "promote", "web", "web:1"))
	assert.Equal(t, "3", a.read(t, "web:1", "file"))
	assert.Equal(t, exitPrecondition, a.run(t, "rollback", "web", "one").code, "it is mounted")
	a.ok(t, "rollback", "web", "one", "--live")
	a.ok(t, "merge", "fork", "--live")
	for file, want := range map[string]string{"file": "1", "of-fork": "2"} {
		content, err := os.ReadFile(filepath.Join(at, file))
		require.NoError(t, err)
		assert.Equal(t, want, string(content))
	}
	a.ok(t, "unmount", "web")
	a.ok(t, "rollback", "web", "one")
	assert.Empty(t, a.ok(t, "changes", "web", "web@one"))
	a.with(t, "web", func(dir string) { assert.True(t, isOverlay(t, dir)) })
	assert.Contains(t, a.ok(t, "log", "web"), "fork")

	a.ok(t, "unmount", "fork")
	a.ok(t, "create", "base")
	a.ok(t, "create", "shared", "--parent", "base", "--root-style", "shared")
	a.ok(t, "snapshot", "shared", "one")
	a.ok(t, "rm", "shared", "base") // the snapshot shares it
	a.ok(t, "rm", "web", "fork")
	a.ok(t, "rmi", "web:1", "app:1")
	assert.Empty(t, a.ok(t, "ls", "--names"))
}
