package treecmp

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// sample makes a small tree with a bit of everything that needs no privileges.
func sample(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	when := time.Unix(1_700_000_000, 5)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "d/f"), []byte("bytes"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "g"), []byte("bytes"), 0o644))
	require.NoError(t, os.Link(filepath.Join(dir, "d/f"), filepath.Join(dir, "h")))
	require.NoError(t, os.Symlink("d/f", filepath.Join(dir, "s")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "p"), 0o600))
	for _, name := range []string{"d/f", "g", "p", "d"} {
		require.NoError(t, os.Chtimes(filepath.Join(dir, name), when, when))
	}
	ts := []unix.Timespec{{Sec: 1}, {Sec: 1}}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "s"), ts, unix.AT_SYMLINK_NOFOLLOW))
	return dir
}

func TestEqualTrees(t *testing.T) {
	assert.True(t, Equal(t, sample(t), sample(t), Options{}))
}

func TestDiff(t *testing.T) {
	at := func(dir, name string) string { return filepath.Join(dir, name) }
	keepTime := func(t *testing.T, path string, change func()) {
		t.Helper()
		info, err := os.Stat(path)
		require.NoError(t, err)
		change()
		require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		opts   Options
		want   []string
	}{
		{"missing", func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(at(dir, "p")))
		}, Options{}, []string{`"p": only in the second`}},
		{"added", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(at(dir, "new"), nil, 0o600))
		}, Options{}, []string{`"new": only in the first`}},
		{"content", func(t *testing.T, dir string) {
			keepTime(t, at(dir, "g"), func() { require.NoError(t, os.WriteFile(at(dir, "g"), []byte("other"), 0o644)) })
		}, Options{}, []string{`"g": content`}},
		{"size", func(t *testing.T, dir string) {
			keepTime(t, at(dir, "g"), func() { require.NoError(t, os.WriteFile(at(dir, "g"), nil, 0o644)) })
		}, Options{}, []string{`"g": size: 0 and 5`}},
		{"mode", func(t *testing.T, dir string) {
			require.NoError(t, os.Chmod(at(dir, "g"), 0o600))
		}, Options{}, []string{`"g": mode: 0100600 and 0100644`}},
		{"type", func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(at(dir, "s")))
			require.NoError(t, os.WriteFile(at(dir, "s"), nil, 0o777))
			require.NoError(t, os.Chmod(at(dir, "s"), 0o777))
		}, Options{}, []string{`"s": mode: 0100777 and 0120777`}},
		{"target", func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(at(dir, "s")))
			require.NoError(t, os.Symlink("g", at(dir, "s")))
		}, Options{SkipTime: func(p string) bool { return p == "s" }}, []string{`"s": target: "g" and "d/f"`}},
		{"time", func(t *testing.T, dir string) {
			require.NoError(t, os.Chtimes(at(dir, "g"), time.Unix(9, 0), time.Unix(9, 0)))
		}, Options{}, []string{`"g": modification time: 9.000000000 and 1700000000.000000005`}},
		{"fraction", func(t *testing.T, dir string) {
			require.NoError(t, os.Chtimes(at(dir, "g"), time.Unix(1_700_000_000, 0), time.Unix(1_700_000_000, 0)))
		}, Options{WholeSeconds: true}, nil},
		{"link", func(t *testing.T, dir string) {
			keepTime(t, at(dir, "d"), func() {
				require.NoError(t, os.Remove(at(dir, "h")))
				require.NoError(t, os.WriteFile(at(dir, "h"), []byte("bytes"), 0o644))
				keepTime(t, at(dir, "d/f"), func() {})
			})
			when := time.Unix(1_700_000_000, 5)
			require.NoError(t, os.Chtimes(at(dir, "h"), when, when))
		}, Options{}, []string{
			`"d/f": links: 1 and 2`, `"d/f": hard link of: "" and "d/f"`,
			`"h": links: 1 and 2`, `"h": hard link of: "" and "d/f"`,
		}},
		{"skip", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(at(dir, "new"), nil, 0o600))
		}, Options{Skip: func(p string) bool { return p == "new" }}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := sample(t), sample(t)
			tt.change(t, a)
			got, err := Diff(a, b, tt.opts)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

// TestLinksInTree compares files that have a link outside of the tree.
func TestLinksInTree(t *testing.T) {
	a, b := sample(t), sample(t)
	require.NoError(t, os.Link(filepath.Join(a, "g"), filepath.Join(t.TempDir(), "outside")))
	got, err := Diff(a, b, Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{`"g": links: 2 and 1`, `"g": hard link of: "g" and ""`}, got)
	got, err = Diff(a, b, Options{LinksInTree: true})
	require.NoError(t, err)
	assert.Empty(t, got)
}

// TestRead compares a tree with an earlier state of itself.
func TestRead(t *testing.T) {
	dir := sample(t)
	before, err := Read(dir, Options{})
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, "g")))
	after, err := Read(dir, Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{`"g": only in the first`}, before.Diff(after, Options{}))
	assert.Empty(t, after.Diff(after, Options{}))
}

func TestXattr(t *testing.T) {
	a, b := sample(t), sample(t)
	if err := unix.Setxattr(filepath.Join(a, "g"), "user.x", []byte("1"), 0); err != nil {
		testfs.Skip(t, "no user.* attributes here: %v", err)
	}
	got, err := Diff(a, b, Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{`"g": xattr user.x: only in the first`}, got)
	require.NoError(t, unix.Setxattr(filepath.Join(b, "g"), "user.x", []byte("2"), 0))
	got, err = Diff(a, b, Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{`"g": xattr user.x: "1" and "2"`}, got)
	got, err = Diff(a, b, Options{SkipXattr: func(_, name string) bool { return name == "user.x" }})
	require.NoError(t, err)
	assert.Empty(t, got)
}

func TestNoTree(t *testing.T) {
	_, err := Diff(t.TempDir(), filepath.Join(t.TempDir(), "missing"), Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
}
