package textdiff

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// tree makes files, and directories and symbolic links, whose content begins with "-> ".
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		target, link := strings.CutPrefix(content, "-> ")
		switch {
		case link:
			require.NoError(t, os.Symlink(target, path))
		case strings.HasSuffix(name, "/"):
			require.NoError(t, os.MkdirAll(path, 0o755))
		default:
			require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
		}
	}
	return dir
}

func show(t *testing.T, top, base string, limits Limits, changes ...archive.Change) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, Write(t.Context(), &b, top, base, changes, limits))
	return b.String()
}

var wide = Limits{File: 1 << 20, Total: 1 << 20}

func TestWrite(t *testing.T) {
	if runtime.GOOS == "windows" {
		testfs.Skip(t, "Windows has other file names and modes")
	}
	base := tree(t, map[string]string{
		"dir/file": "1\n2\n3\n", "same": "same\n", "gone": "gone\n", "bin": "\x00", "latin": "\xe9", "link": "-> old", "was-dir/x": "", "empty": "", "tree/x": "x",
	})
	top := tree(t, map[string]string{
		"dir/file": "1\ntwo\n3", "same": "same\n", "new": "new\n", "bin": "\x00\x01", "latin": "\xea", "link": "-> a\nb", "was-dir": "file", "newdir/": "", "newlink": "-> /etc",
	})
	require.NoError(t, os.Chmod(filepath.Join(top, "dir/file"), 0o755))
	const add, modify, remove archive.ChangeType = archive.ChangeAdd, archive.ChangeModify, archive.ChangeDelete
	assert.Equal(t, `changed binary file /bin, 1 -> 2 bytes
changed file /dir/file: mode -rw-r--r-- -> -rwxr-xr-x
diff a/dir/file b/dir/file
--- a/dir/file
+++ b/dir/file
@@ -1,3 +1,3 @@
 1
-2
-3
+two
+3
\ No newline at end of file
deleted file /empty, 0 bytes
diff a/gone /dev/null
--- a/gone
+++ /dev/null
@@ -1,1 +0,0 @@
-gone
changed binary file /latin, 1 -> 1 bytes
changed symbolic link /link -> "a\nb", was old
diff /dev/null b/new
--- /dev/null
+++ b/new
@@ -0,0 +1,1 @@
+new
added directory /newdir
added symbolic link /newlink -> /etc
changed file /same: not its content
deleted directory /tree
deleted directory /was-dir
added file /was-dir, 4 bytes
`, show(t, top, base, wide,
		archive.Change{Path: "/bin", Kind: modify}, archive.Change{Path: "/dir", Kind: modify}, archive.Change{Path: "/dir/file", Kind: modify},
		archive.Change{Path: "/empty", Kind: remove}, archive.Change{Path: "/gone", Kind: remove}, archive.Change{Path: "/latin", Kind: modify},
		archive.Change{Path: "/link", Kind: modify}, archive.Change{Path: "/new", Kind: add}, archive.Change{Path: "/newdir", Kind: add},
		archive.Change{Path: "/newlink", Kind: add}, archive.Change{Path: "/same", Kind: modify}, archive.Change{Path: "/tree", Kind: remove},
		archive.Change{Path: "/was-dir", Kind: modify}))
}

// TestHostile: neither names nor content reach a terminal as they are.
func TestHostile(t *testing.T) {
	if runtime.GOOS == "windows" {
		testfs.Skip(t, "Windows has no such names")
	}
	name := "a\n\x1b[2J\xff"
	top := tree(t, map[string]string{name: "\x1b[2Jtext\r\n", "out": "-> \x1b[2J"})
	got := show(t, top, "", wide, archive.Change{Path: "/" + name, Kind: archive.ChangeAdd}, archive.Change{Path: "/out", Kind: archive.ChangeAdd})
	assert.Equal(t, `diff /dev/null "b/a\n\x1b[2J\xff"
--- /dev/null
+++ "b/a\n\x1b[2J\xff"
@@ -0,0 +1,1 @@
+\x1b[2Jtext\r
added symbolic link /out -> "\x1b[2J"
`, got)

	require.NoError(t, os.Remove(filepath.Join(top, name)))
	err := Write(t.Context(), &strings.Builder{}, top, "", []archive.Change{{Path: "/" + name, Kind: archive.ChangeAdd}}, wide)
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.NotContains(t, err.Error(), "\x1b")
	assert.Contains(t, err.Error(), `"/a\n\x1b[2J\xff": `)
}

func TestLimits(t *testing.T) {
	top := tree(t, map[string]string{"a": "12345\n", "b": "123456789\n", "c": "1\n"})
	changes := []archive.Change{{Path: "/a", Kind: archive.ChangeAdd}, {Path: "/b", Kind: archive.ChangeAdd}, {Path: "/c", Kind: archive.ChangeAdd}}
	got := show(t, top, "", Limits{File: 6, Total: 7}, changes...)
	assert.Contains(t, got, "+12345\nadded large file /b, 10 bytes\nadded further file /c, 2 bytes\n")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Write(ctx, &strings.Builder{}, top, "", changes, wide), context.Canceled)
}
