package toplugin

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
	_ "github.com/cowshed/cowshed/zfs" // the driver
)

// TestFreeNewZFS: before the plugin's home is made, the dataset that an option names tells how much room there is, wherever the
// home will be.
func TestFreeNewZFS(t *testing.T) {
	dataset, _ := testfs.ZFS(t)
	tool, err := admintool.Look("zfs")
	require.NoError(t, err)
	out, err := exec.Command(tool, "set", "quota=64M", dataset).CombinedOutput()
	require.NoError(t, err, "%s", out)
	root := t.TempDir()
	home := filepath.Join(root, "cowshed", "zfs")
	target, err := New(Options{
		Root: root, Plugin: "cowshed", Home: home, State: filepath.Join(root, "state"), DriverOptions: []string{"zfs.fsname=" + dataset},
		Idle: func(context.Context) error { return nil },
		Open: func(context.Context) (*cowdriver.Driver, error) { panic("a check makes no home") },
	})
	require.NoError(t, err)
	check := func(size int64) error {
		inv := &migrate.Inventory{Layers: []migrate.Layer{{ID: "layer", Kind: migrate.ImageLayer, Size: size}}}
		return target.Check(t.Context(), directory{dir: root}, inv)
	}
	err = check(65 << 20)
	require.ErrorIs(t, err, unix.ENOSPC)
	assert.ErrorContains(t, err, "the layers need 65MiB, and the plugin's dataset has ")
	require.NoError(t, check(1<<20))
	assert.NoDirExists(t, filepath.Dir(home))
	require.NoError(t, target.Close())
}

// directory is a source with a layer in a directory.
type directory struct {
	migrate.Source
	dir string
}

func (d directory) Open(context.Context, string) (*migrate.Content, error) {
	dir, err := os.Open(d.dir)
	return &migrate.Content{Dir: dir, Form: migrate.Whole}, err
}
