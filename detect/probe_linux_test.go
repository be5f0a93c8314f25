package detect

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestProbeTypes(t *testing.T) {
	for want, path := range map[string]func(t *testing.T) string{
		"proc":  func(*testing.T) string { return "/proc" },
		"tmpfs": func(t *testing.T) string { return mount(t, "tmpfs", "tmpfs", 0, "") },
		"btrfs": func(t *testing.T) string { return testfs.Btrfs(t) },
		"ext4":  ext4,
		"overlay": func(t *testing.T) string {
			lower, upper := mount(t, "tmpfs", "tmpfs", 0, ""), mount(t, "tmpfs", "tmpfs", 0, "")
			for _, dir := range []string{"upper", "work"} {
				require.NoError(t, os.Mkdir(filepath.Join(upper, dir), 0o755))
			}
			return mount(t, "overlay", "overlay", 0, "lowerdir="+lower+",upperdir="+upper+"/upper,workdir="+upper+"/work")
		},
	} {
		t.Run(want, func(t *testing.T) {
			dir := resolved(t, path(t))
			f, err := Probe(dir)
			require.NoError(t, err)
			assert.Equal(t, want, f.Type)
			assert.Equal(t, dir, f.Mountpoint)
			assert.Equal(t, "/", f.Root)
			assert.NotEmpty(t, f.Source)
			assert.False(t, f.ReadOnly)
			assert.Contains(t, strings.Split(f.Options, ","), "rw")
			assert.Equal(t, want+" ("+f.Source+", mounted on "+dir+")", f.String())
		})
	}
}

// TestProbePaths looks at places that are not a mount point, or not there.
func TestProbePaths(t *testing.T) {
	dir := resolved(t, mount(t, "below", "tmpfs", 0, ""))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	require.NoError(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling")))
	outside := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, outside))

	for path, existing := range map[string]string{
		filepath.Join(dir, "file"):  filepath.Join(dir, "file"),
		filepath.Join(dir, "a/b/c"): dir,
		dir + "/a/../../":           filepath.Dir(dir),
		filepath.Join(outside, "a"): outside,
	} {
		f, err := Probe(path)
		require.NoError(t, err, path)
		assert.Equal(t, existing, f.Path)
		if existing != filepath.Dir(dir) {
			assert.Equal(t, "below", f.Source, path)
		}
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "dangling"):   "is a link to nowhere",
		filepath.Join(dir, "file/below"): "not a directory",
	} {
		_, err := Probe(path)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, path)
	}

	t.Chdir(dir)
	f, err := Probe("relative")
	require.NoError(t, err)
	assert.Equal(t, dir, f.Path)
}

// TestProbeMounts tells mounts of one filesystem, and mounts on one directory, apart.
func TestProbeMounts(t *testing.T) {
	t.Run("stacked", func(t *testing.T) {
		dir := mount(t, "below", "tmpfs", 0, "")
		mountOn(t, dir, "above", "tmpfs", unix.MS_RDONLY, "")
		f, err := Probe(dir)
		require.NoError(t, err)
		assert.Equal(t, "above", f.Source)
		assert.True(t, f.ReadOnly)
	})
	t.Run("bind", func(t *testing.T) {
		dir := resolved(t, mount(t, "below", "tmpfs", 0, "size=1m"))
		require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
		bound := resolved(t, mount(t, filepath.Join(dir, "sub"), "", unix.MS_BIND, ""))
		require.NoError(t, unix.Mount("", bound, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		f, err := Probe(filepath.Join(bound, "absent"))
		require.NoError(t, err)
		assert.Equal(t, bound, f.Mountpoint)
		assert.Equal(t, "/sub", f.Root)
		assert.True(t, f.ReadOnly)
		assert.Subset(t, strings.Split(f.Options, ","), []string{"ro", "size=1024k"})
		assert.NotContains(t, strings.Split(f.Options, ","), "rw")

		f, err = Probe(dir)
		require.NoError(t, err)
		assert.False(t, f.ReadOnly)
	})
	t.Run("subvolume", func(t *testing.T) {
		dir := testfs.Btrfs(t)
		f, err := os.Open(dir)
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, btrfsctl.CreateSubvolume(int(f.Fd()), "sub", nil))
		fs, err := Probe(filepath.Join(dir, "sub", "absent"))
		require.NoError(t, err)
		assert.Equal(t, "btrfs", fs.Type)
		assert.Equal(t, resolved(t, dir), fs.Mountpoint)
		assert.Contains(t, fs.Options, "subvol=/")
	})
}

func TestParseMountID(t *testing.T) {
	id, err := parseMountID([]byte("pos:\t0\nflags:\t012000000\nmnt_id:\t29\nino:\t5\n"))
	require.NoError(t, err)
	assert.Equal(t, 29, id)
	for _, bad := range []string{"", "pos:\t0\n", "mnt_id:\tx\n", "mnt_id:\n"} {
		_, err := parseMountID([]byte(bad))
		require.Error(t, err, bad)
	}
}

func TestUnknownType(t *testing.T) {
	assert.Equal(t, "0xbadcafe", Filesystem{Type: "0xbadcafe"}.String())
}
