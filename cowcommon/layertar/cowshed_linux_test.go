package layertar

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestCowshedName has names of Cowshed's own, and names that only look like them.
func TestCowshedName(t *testing.T) {
	testfs.Root(t)
	for name, refused := range map[string]bool{
		".cowshed": true, "./.cowshed": true, "/.cowshed": true, "a/../.cowshed": true, ".cowshed/upper/f": true,
		"a/.cowshed": false, ".cowshed2": false, ".cowshed-/f": false, ".Cowshed": false, "cowshed": false, ".wh..cowshed": false,
	} {
		t.Run(name, func(t *testing.T) {
			var layer bytes.Buffer
			w := tar.NewWriter(&layer)
			require.NoError(t, w.WriteHeader(&tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755}))
			require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}))
			require.NoError(t, w.Close())
			dir := t.TempDir()
			_, err := Apply(t.Context(), dir, &layer, ApplyOptions{})
			if !refused {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrCowshedName)
			var entry *EntryError
			require.ErrorAs(t, err, &entry)
			assert.Equal(t, filepath.Clean("/"+name), filepath.Clean("/"+entry.Name))
			assert.NoDirExists(t, dir+"/.cowshed")
		})
	}
}

func TestWriteCowshedName(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(dir+"/a/.cowshed", 0o755))
	require.NoError(t, os.WriteFile(dir+"/.cowshed-", nil, 0o644))
	gone := archive.Change{Path: "/.cowshed", Kind: archive.ChangeDelete}
	require.NoError(t, Write(t.Context(), io.Discard, dir, append(all(t, dir), gone), WriteOptions{}))

	require.NoError(t, os.Mkdir(dir+"/.cowshed", 0o755))
	err := Write(t.Context(), io.Discard, dir, all(t, dir), WriteOptions{})
	require.ErrorIs(t, err, ErrCowshedName)
}
