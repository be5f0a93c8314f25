package sharedroot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

const immutable = 0x10 // FS_IMMUTABLE_FL

func setFlags(t *testing.T, flags int, paths ...string) {
	t.Helper()
	for _, path := range paths {
		f, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags), "%s", path)
		require.NoError(t, f.Close())
	}
}

// TestFoldOverProtectedFiles has files in the lower that nobody can change. The overlay has taken the protection off, or
// given it to files that it has made.
func TestFoldOverProtectedFiles(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	lower := h.path("lower")
	protected := []string{"gone", "written", "dir/in", "dir", "tree/sub/f", "tree/sub", "tree", "mode"}
	at := func(root string) (paths []string) {
		for _, name := range protected {
			paths = append(paths, filepath.Join(root, name))
		}
		return paths
	}
	for _, name := range []string{"dir", "tree/sub", "mode"} {
		require.NoError(t, os.MkdirAll(lower+"/"+name, 0o755))
	}
	for _, name := range []string{"gone", "written", "dir/in", "tree/sub/f"} {
		require.NoError(t, os.WriteFile(lower+"/"+name, []byte(name), 0o644))
	}
	setFlags(t, immutable, at(lower)...)
	h.seal("lower")
	h.prepare("v", "lower")

	view, unmount := h.mount("v", "lower")
	setFlags(t, 0, at(view)...)
	require.NoError(t, os.Remove(view+"/gone"))
	require.NoError(t, os.WriteFile(view+"/written", []byte("new"), 0o600))
	require.NoError(t, os.WriteFile(view+"/dir/new", nil, 0o600))
	require.NoError(t, os.RemoveAll(view+"/tree"))
	require.NoError(t, os.Chmod(view+"/mode", 0o700))
	setFlags(t, immutable, view+"/dir/new")
	want, err := treecmp.Read(view, merged)
	require.NoError(t, err)
	setFlags(t, 0, view+"/dir/new")
	unmount()

	h.fold("v")
	got, err := treecmp.Read(h.path("v"), merged)
	require.NoError(t, err)
	require.Empty(t, want.Diff(got, merged))
}
