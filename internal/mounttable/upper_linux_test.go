package mounttable

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestIsUpper: an upper is found under another name, and under an overlay that no namespace has. The question leaves nothing.
func TestIsUpper(t *testing.T) {
	dir := testfs.Btrfs(t)
	for _, name := range []string{"lower", "upper", "work", "at"} {
		require.NoError(t, os.Mkdir(dir+"/"+name, 0o755))
	}
	is := func(name string) bool {
		t.Helper()
		f, err := os.Open(dir + "/" + name)
		require.NoError(t, err)
		defer f.Close()
		is, err := IsUpper(f)
		require.NoError(t, err)
		return is
	}
	assert.False(t, is("upper"))
	entries, err := os.ReadDir(dir + "/upper")
	require.NoError(t, err)
	assert.Empty(t, entries)
	require.NoError(t, unix.Mount("overlay", dir+"/at", "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"))
	assert.True(t, is("upper"))
	assert.False(t, is("lower"))
	require.NoError(t, os.Rename(dir+"/upper", dir+"/renamed"))
	assert.True(t, is("renamed"))
	held, err := os.Open(dir + "/at")
	require.NoError(t, err)
	require.NoError(t, unix.Unmount(dir+"/at", unix.MNT_DETACH))
	assert.True(t, is("renamed"))
	require.NoError(t, held.Close())
	assert.False(t, is("renamed"))
}
