package treediff

import (
	"os"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestSharedRootIsHidden compares trees that have Cowshed's directory with trees that have none, or a user's.
func TestSharedRootIsHidden(t *testing.T) {
	mnt := testfs.Btrfs(t)
	tree := func(name string) string { return mnt + "/" + name }
	for _, name := range []string{"none", "user", "own", "file"} {
		require.NoError(t, os.MkdirAll(tree(name)+"/d/.cowshed/f", 0o755))
	}
	for _, name := range []string{"user", "own"} {
		require.NoError(t, os.MkdirAll(tree(name)+"/.cowshed/upper", 0o700))
	}
	mark := func(path string) {
		require.NoError(t, unix.Setxattr(path, "trusted.cowshed.shared", []byte("1 lower"), 0))
	}
	mark(tree("own") + "/.cowshed")
	require.NoError(t, os.WriteFile(tree("file")+"/.cowshed", nil, 0o600))
	mark(tree("file") + "/.cowshed")

	change := func(path string, kind archive.ChangeType) archive.Change {
		return archive.Change{Path: path, Kind: kind}
	}
	added := []archive.Change{change("/.cowshed", archive.ChangeAdd), change("/.cowshed/upper", archive.ChangeAdd)}
	gone := []archive.Change{change("/.cowshed", archive.ChangeDelete)}
	below := []archive.Change{change("/d", archive.ChangeAdd), change("/d/.cowshed", archive.ChangeAdd), change("/d/.cowshed/f", archive.ChangeAdd)}
	for name, tt := range map[string]struct {
		top, base string
		want      []archive.Change
	}{
		"own with none":  {"own", "none", nil},
		"none with own":  {"none", "own", nil},
		"own with own":   {"own", "own", nil},
		"user with none": {"user", "none", added},
		"user with own":  {"user", "own", added},
		"own with user":  {"own", "user", gone},
		"none with user": {"none", "user", gone},
		"file with own":  {"file", "own", []archive.Change{change("/.cowshed", archive.ChangeAdd)}},
		"own alone":      {"own", "", below},
		"user alone":     {"user", "", append(added[:2:2], below...)},
	} {
		t.Run(name, func(t *testing.T) {
			base := ""
			if tt.base != "" {
				base = tree(tt.base)
			}
			got, err := Compare(t.Context(), tree(tt.top), base, nil)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
			if base == "" {
				return
			}
			hints := &Hints{ByName: true}
			hints.Add(".cowshed", 0)
			hints.Add(".cowshed/upper", Written)
			got, err = Compare(t.Context(), tree(tt.top), base, hints)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

// TestHintsByName compares trees that share no inode numbers.
func TestHintsByName(t *testing.T) {
	top, base := t.TempDir(), t.TempDir()
	for _, dir := range []string{top, base} {
		require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
		require.NoError(t, os.Mkdir(dir+"/deep", 0o755))
	}
	for _, name := range []string{"/new", "/a/new", "/a/b/new", "/deep/new"} {
		require.NoError(t, os.WriteFile(top+name, nil, 0o644))
	}
	compare := func(hints *Hints) (paths []string) {
		changes, err := Compare(t.Context(), top, base, hints)
		require.NoError(t, err)
		for _, c := range changes {
			paths = append(paths, c.Path)
		}
		return paths
	}
	hints := &Hints{ByName: true}
	assert.Empty(t, compare(hints))
	hints.Add("a/b/new", Written)
	hints.Add("deep", Deep)
	assert.Equal(t, []string{"/a", "/a/b", "/a/b/new", "/deep", "/deep/new"}, compare(hints))
}
