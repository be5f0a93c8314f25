//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	mobydriver "github.com/moby/moby/v2/daemon/graphdriver"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestOpensWhatMobyMade has moby's driver make layers, opens them as they are, and has moby's driver open
// the result.
func TestOpensWhatMobyMade(t *testing.T) {
	testfs.Root(t)
	root := testfs.Btrfs(t)
	moby, err := mobydriver.New("btrfs", mobydriver.Options{Root: root})
	require.NoError(t, err)
	require.NoError(t, moby.Create("image", "", nil))
	dir, err := moby.Get("image", "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("image"), 0o600))
	require.NoError(t, moby.Put("image"))
	size := map[string]string{"size": "30M"}
	require.NoError(t, moby.CreateReadWrite("container", "image", &mobydriver.CreateOpts{StorageOpt: size}))
	require.NoError(t, moby.Cleanup())

	ours, err := graphdriver.New("", graphdriver.Options{Root: root}) // found by its prior state
	require.NoError(t, err)
	dir, err = ours.Get("container", "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("container"), 0o600))
	assert.ErrorIs(t, fill(filepath.Join(dir, "too much"), 40<<20), unix.EDQUOT, "moby's limit is kept")
	require.NoError(t, os.Remove(filepath.Join(dir, "too much")))
	require.NoError(t, ours.Put("container"))
	changes, err := ours.Changes("container", "image")
	require.NoError(t, err)
	require.Len(t, changes, 1)
	assert.Equal(t, "C /file", changes[0].String())
	assert.Equal(t, uint64(1), ours.(*cowdriver.Driver).CompareStats().Native)
	require.NoError(t, ours.CreateReadWrite("second", "image", nil))
	require.NoError(t, ours.Cleanup())

	moby, err = mobydriver.New("btrfs", mobydriver.Options{Root: root})
	require.NoError(t, err)
	for _, id := range []string{"second", "container", "image"} {
		assert.True(t, moby.Exists(id))
		require.NoError(t, moby.Remove(id))
	}
	require.NoError(t, moby.Cleanup())
}

func fill(path string, bytes int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, bytes)); err != nil {
		return err
	}
	return f.Sync()
}
