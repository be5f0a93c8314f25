package overlaysource

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestHome: a home is the same by whichever path, and after a rename. All other homes, and copies of it, are others.
func TestHome(t *testing.T) {
	at := func(path string) Home {
		t.Helper()
		dir, err := os.Open(path)
		require.NoError(t, err)
		defer dir.Close()
		home, err := HomeOf(dir)
		require.NoError(t, err)
		require.NotZero(t, home.Volume("web"))
		return home
	}
	run := func(arguments ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), arguments[0], arguments[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	a, b := testfs.Btrfs(t), testfs.Btrfs(t)
	for _, path := range []string{a + "/home", a + "/other", b + "/home"} {
		run("btrfs", "subvolume", "create", path)
	}
	run("btrfs", "subvolume", "snapshot", a+"/home", a+"/copy")
	homes := map[Home]bool{}
	volumes := map[Volume]bool{}
	for _, path := range []string{a + "/home", a + "/other", a + "/copy", b + "/home"} {
		homes[at(path)] = true
		volumes[at(path).Volume("web")] = true
		volumes[at(path).Volume("image")] = true
	}
	assert.Len(t, homes, 4)
	assert.Len(t, volumes, 8)

	home := at(a + "/home")
	require.NoError(t, os.Rename(a+"/home", a+"/renamed"))
	other := t.TempDir()
	require.NoError(t, unix.Mount(a+"/renamed", other, "", unix.MS_BIND, ""))
	defer func() { assert.NoError(t, unix.Unmount(other, 0)) }()
	assert.Equal(t, home, at(a+"/renamed"))
	assert.Equal(t, home, at(other))

	assert.Zero(t, Home{}.Volume("web"), "the home is not known")
}
