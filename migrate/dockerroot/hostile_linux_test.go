package dockerroot

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

// traps replace a file or directory of a root. A reader that follows the link finds the very same
// outside of the root.
var traps = map[string]func(t *testing.T, path, outside string){
	"symbolic link": func(t *testing.T, path, outside string) { require.NoError(t, os.Symlink(outside, path)) },
	"pipe":          func(t *testing.T, path, _ string) { require.NoError(t, unix.Mkfifo(path, 0o666)) },
	"socket":        func(t *testing.T, path, _ string) { require.NoError(t, unix.Mknod(path, unix.S_IFSOCK|0o666, 0)) },
	"device": func(t *testing.T, path, _ string) { // /dev/zero
		require.NoError(t, unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	},
	"directory": func(t *testing.T, path, outside string) {
		if info, err := os.Stat(outside); err == nil && info.IsDir() {
			require.NoError(t, os.WriteFile(path, []byte("text"), 0o644))
			return
		}
		require.NoError(t, os.Mkdir(path, 0o755))
	},
	"huge file": func(t *testing.T, path, _ string) {
		require.NoError(t, os.WriteFile(path, nil, 0o644))
		require.NoError(t, os.Truncate(path, 1<<40))
	},
}

// TestHostile replaces each file and each directory of a root by each trap. All that the source reads then is in the root: the
// sample comes back in part, or not at all, and soon.
func TestHostile(t *testing.T) {
	testfs.Root(t) // makes devices
	for _, driver := range treeDrivers {
		t.Run(driver, func(t *testing.T) {
			outside := t.TempDir()
			s := fill(newTestRoot(t, filepath.Join(outside, "root"), driver))
			want := s.inventory()
			tried := 0
			for _, name := range s.read() {
				for kind, trap := range traps {
					path := s.Path(name)
					aside := filepath.Join(outside, "aside")
					require.NoError(t, os.Rename(path, aside))
					trap(t, path, aside)
					inv, err := everything(t, s.testRoot)
					if err == nil && assert.ObjectsAreEqual(want, inv) {
						t.Errorf("%s in place of %s goes unnoticed", kind, name)
					}
					require.NotErrorIs(t, err, context.DeadlineExceeded)
					require.NoError(t, os.RemoveAll(path))
					require.NoError(t, os.Rename(aside, path))
					tried++
				}
			}
			assert.Greater(t, tried, 250)
			inv, err := everything(t, s.testRoot)
			require.NoError(t, err)
			require.Equal(t, want, inv)
		})
	}
}

// read lists the files and directories of the sample that a source reads.
func (s *sample) read() (names []string) {
	unread := []string{"volumes", "image/" + s.Driver + "/distribution", "image/" + s.Driver + "/layerdb/tmp", "image/" + s.Driver + "/imagedb/metadata"}
	require.NoError(s.t, filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(s.Dir, path)
		switch base := filepath.Base(path); {
		case err != nil:
			return err
		case slices.Contains(unread, name), base == "l", base == "work", base == "mnt":
			return fs.SkipDir
		case name == ".", base == "committed", base == "link", base == "file", d.Type()&fs.ModeSymlink != 0:
			return nil
		}
		names = append(names, name)
		return nil
	}))
	return names
}

// everything reads all that a source gives. Errors of Open are no reason to stop.
func everything(t *testing.T, r *testRoot) (*migrate.Inventory, error) {
	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	s, err := Open(ctx, Options{Dir: r.Dir, Driver: r.Driver, Logger: silent})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	inv, err := s.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range inv.Layers {
		c, openErr := s.Open(ctx, l.ID)
		if openErr == nil {
			openErr = c.Close()
		}
		parts, partsErr := s.Parts(ctx, l.ID)
		if partsErr == nil {
			_, partsErr = io.Copy(io.Discard, io.LimitReader(parts, 1<<20))
			partsErr = errors.Join(partsErr, parts.Close())
		} else if l.Kind != migrate.ImageLayer {
			partsErr = nil
		}
		if err := errors.Join(openErr, partsErr); err != nil {
			return nil, err
		}
	}
	return inv, ctx.Err()
}

// A database that is none is locked by nobody, and is not followed.
func TestHostileDatabase(t *testing.T) {
	testfs.Root(t)
	outside := filepath.Join(t.TempDir(), "metadata.db")
	require.NoError(t, os.WriteFile(outside, nil, 0o644))
	for _, name := range []string{"volumes/metadata.db", "buildkit/x.db", "buildkit"} {
		for kind, trap := range traps {
			s := fill(newTestRoot(t, t.TempDir(), "vfs"))
			s.Mkdir(filepath.Dir(name))
			trap(t, s.Path(name), outside)
			err := open(t, s.testRoot).InUse(t.Context())
			if kind == "huge file" && name != "buildkit" || kind == "directory" && name == "buildkit" {
				require.NoError(t, err, "%s in place of %s", kind, name)
				continue
			}
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%s in place of %s", kind, name)
		}
	}
}

// A directory with very many names is not read without end, and neither are many configurations.
func TestHostileNames(t *testing.T) {
	s := fill(newTestRoot(t, t.TempDir(), "vfs"))
	for _, name := range []string{"image/vfs/layerdb/sha256/", "image/vfs/layerdb/mounts/", "image/vfs/imagedb/content/sha256/", "containers/"} {
		s.Write(name+strings.Repeat("x", 255), "")
		s.Write(name+"\x1b[2Jescape", "")
	}
	inv, err := everything(t, s.testRoot)
	require.NoError(t, err)
	assert.Len(t, inv.Problems, 8)
	for _, p := range inv.Problems {
		assert.NotContains(t, p.ID+p.Name+p.Err.Error(), "\x1b")
	}
	inv.Problems = nil
	assert.Equal(t, s.inventory(), inv)
}

// The path of the root is the user's, and may be a link. The directory of the driver may not: one error says so.
func TestLinks(t *testing.T) {
	s := fill(newTestRoot(t, t.TempDir(), "overlay2"))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(s.Dir, link))
	src, err := Open(t.Context(), Options{Dir: link, Logger: silent})
	require.NoError(t, err)
	inv, err := src.Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, s.inventory(), inv)

	require.NoError(t, os.Rename(s.Path("overlay2"), s.Path("elsewhere")))
	require.NoError(t, os.Symlink("elsewhere", s.Path("overlay2")))
	_, err = src.Inventory(t.Context())
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.ErrorContains(t, err, s.Path("overlay2"))
	require.NoError(t, src.Close())
}

// Two layers that claim one ID are known by none, with or without an Inventory.
func TestClaimedTwice(t *testing.T) {
	s := fill(newTestRoot(t, t.TempDir(), "vfs"))
	s.Write(s.LayerDir(s.c)+"/cache-id", s.b.ID)
	src := open(t, s.testRoot)
	for range 2 {
		_, err := src.Parts(t.Context(), s.b.ID)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		parts, err := src.Parts(t.Context(), s.a.ID)
		require.NoError(t, err)
		require.NoError(t, parts.Close())
		_, err = src.Inventory(t.Context())
		require.NoError(t, err)
	}
}
