package layertar

import (
	"errors"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treeat"
)

// TestFindAsOpenat2 resolves random paths in random forests of symbolic links, and expects the directory
// that openat2 finds with RESOLVE_IN_ROOT.
func TestFindAsOpenat2(t *testing.T) {
	testfs.CheckLeaks(t)
	found, missed := 0, 0
	seeds(t, func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		root := t.TempDir()
		defer os.RemoveAll(root)
		names := []string{"a", "b", "c", "d"}
		somePath := func(dots bool) string {
			var elems []string
			for range 1 + rnd.IntN(4) {
				elems = append(elems, names[rnd.IntN(len(names))])
				if dots && rnd.IntN(3) == 0 {
					elems = append(elems, "..")
				}
			}
			return strings.Join(elems, "/")
		}
		for range 20 {
			p := filepath.Join(root, somePath(false))
			_ = os.MkdirAll(filepath.Dir(p), 0o755) // may meet a file or link
			switch rnd.IntN(4) {
			case 0:
				_ = os.Symlink(somePath(true), p)
			case 1:
				_ = os.Symlink("/"+somePath(true), p)
			case 2:
				_ = os.Symlink("../../../"+somePath(true), p)
			case 3:
				_ = os.Mkdir(p, 0o755)
			}
		}
		must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o644))

		ds, err := openRoot(root, false)
		require.NoError(t, err)
		defer ds.close()
		ds.settle = func(ticket) error { return nil }
		for range 60 {
			p := path.Clean(somePath(false))
			if rnd.IntN(10) == 0 {
				p = "file/" + p
			}
			wantFD, wantErr := openInRoot(ds.root.fd.fd, p)
			d, err := ds.find(p, false)
			if wantErr != nil {
				missed++
				assert.ErrorIs(t, err, wantErr, "seed %d, %s", seed, p)
				continue
			}
			found++
			if assert.NoError(t, err, "seed %d, %s", seed, p) {
				fd, err := ds.fd(d)
				require.NoError(t, err)
				var want, got unix.Stat_t
				require.NoError(t, unix.Fstat(wantFD, &want))
				require.NoError(t, unix.Fstat(fd, &got))
				assert.Equal(t, want.Ino, got.Ino, "seed %d, %s", seed, p)
				assert.Equal(t, want.Ino, stat(t, root, d.path()).Ino, "seed %d, %s is not %s", seed, p, d.path())
			}
			must(t, unix.Close(wantFD))
		}
	})
	t.Logf("%d paths found, %d not", found, missed)
}

// openInRoot asks the kernel, again and again while renames and mounts anywhere keep it from following "..".
func openInRoot(root int, path string) (int, error) {
	for {
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
		})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func TestFindForgets(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "a/b/c"), 0o755))
	must(t, os.Symlink("a/b", filepath.Join(root, "s")))
	ds, err := openRoot(root, false)
	require.NoError(t, err)
	defer ds.close()
	ds.settle = func(ticket) error { return nil }
	find := func(p string) string {
		d, err := ds.find(p, false)
		if err != nil {
			return err.Error()
		}
		return d.path()
	}
	assert.Equal(t, "a/b/c", find("s/c"))
	assert.Equal(t, "a/b/c", find("a/b/c"))
	ds.forget(ds.root, "a")
	ds.forgetPaths()
	must(t, os.RemoveAll(filepath.Join(root, "a")))
	must(t, os.MkdirAll(filepath.Join(root, "a/b"), 0o755))
	assert.Contains(t, find("s/c"), "no such file")
	assert.Equal(t, "a/b", find("s"))
	assert.Equal(t, ".", find("."))
}

func TestRemoveTree(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(at)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "f"), nil, 0o644))

	must(t, treeat.RemoveTree(t.Context(), at, "missing"))
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	must(t, treeat.RemoveTree(t.Context(), at, "f"))
	must(t, os.Symlink(outside, filepath.Join(dir, "s")))
	must(t, treeat.RemoveTree(t.Context(), at, "s"))
	for i := range 50 {
		for j := range 30 {
			p := filepath.Join(dir, "d", string(rune('A'+i)), string(rune('a'+j)))
			must(t, os.MkdirAll(p, 0o755))
			must(t, os.WriteFile(filepath.Join(p, "f"), nil, 0o644))
			must(t, os.Symlink(outside, filepath.Join(p, "s")))
		}
	}
	must(t, treeat.RemoveTree(t.Context(), at, "d"))
	assert.Empty(t, listing(t, dir))
	assert.Equal(t, []string{"f = "}, listing(t, outside))
}
