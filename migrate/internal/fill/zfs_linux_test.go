package fill

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/dataset"
	"github.com/cowshed/cowshed/zfs"
)

// TestZFS: datasets of the pool are adopted as the plan says, with shared roots too. Those that cannot be promoted later are
// copied, as the plan says.
func TestZFS(t *testing.T) {
	root, mnt := testfs.ZFS(t)
	ctx := t.Context()
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600))
	run(t, "zfs", "create", "-o", "canmount=off", root+"/others")
	for name, options := range map[string][]string{
		"plain": nil, "acls": {"-o", "acltype=posix"}, "outer": nil, "secret": {"-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation=file://" + key},
	} {
		run(t, append(append([]string{"zfs", "create"}, options...), root+"/others/"+name)...)
		put(t, filepath.Join(mnt, "others", name), "file", name)
	}
	run(t, "zfs", "create", "-o", "canmount=off", root+"/others/outer/inner")
	home := filepath.Join(mnt, "home")
	run(t, "zfs", "create", root+"/home")
	var backend cowcommon.Backend
	backend, err := zfs.Open(ctx, home, root+"/home", zfs.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, backend.Close()) })
	for _, wrapped := range []bool{false, true} {
		if wrapped {
			shared, err := sharedroot.New(ctx, backend, home, sharedroot.Options{})
			require.NoError(t, err)
			backend = shared
		}
		for name, want := range map[string]migrate.How{
			"plain": migrate.Cloned, "acls": migrate.Copied, "outer": migrate.Copied, "secret": migrate.Copied,
		} {
			source := root + "/others/" + name
			dir, err := dataset.Open(ctx, source)
			require.NoError(t, err)
			content := &migrate.Content{Dir: dir, Form: migrate.Whole, Volume: source}
			layer := &migrate.Layer{Size: 123}
			for _, how := range []func() (migrate.How, int64, error){
				func() (migrate.How, int64, error) {
					return How(ctx, backend, home, layer, content, migrate.Coming{}, "")
				},
				func() (migrate.How, int64, error) {
					place := filepath.Join(home, "new")
					return HowTo(ctx, place, layer, content, migrate.Coming{}, func(ctx context.Context, source, planned string) error {
						driver, ok := cowdriver.Lookup(zfs.Name)
						require.True(t, ok)
						return driver.CheckAdopt(ctx, place, nil, source, planned)
					})
				},
			} {
				got, n, err := how()
				require.NoError(t, err)
				assert.Equal(t, want, got, name)
				assert.Equal(t, map[migrate.How]int64{migrate.Cloned: 0, migrate.Copied: 123}[want], n)
			}
			report, err := Make(ctx, backend, content, Volume{Name: name, Partial: "p"})
			require.NoError(t, err)
			assert.Equal(t, want, report.How, name)
			require.NoError(t, Verify(ctx, backend, name, "", content))
			require.NoError(t, content.Close())
			require.NoError(t, cowcommon.Settle(ctx, backend, name))
			require.NoError(t, backend.Remove(context.WithoutCancel(ctx), name))
		}
	}
}

// TestZFSElsewhere: the dataset of the volumes decides, wherever the home is. A child of a copy is copied too, as the plan says.
func TestZFSElsewhere(t *testing.T) {
	root, mnt := testfs.ZFS(t)
	ctx := t.Context()
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600))
	secret := []string{"-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation=file://" + key}
	run(t, append(append([]string{"zfs", "create", "-o", "canmount=off"}, secret...), root+"/place")...)
	run(t, "zfs", "create", "-o", "canmount=off", root+"/others")
	run(t, "zfs", "create", root+"/others/plain")
	put(t, filepath.Join(mnt, "others/plain"), "file", "plain")
	run(t, "zfs", "create", root+"/place/volumes")
	run(t, "zfs", "create", "-o", "canmount=off", root+"/place/others")
	for _, name := range []string{"base", "stranger"} {
		run(t, "zfs", "create", root+"/place/others/"+name)
		put(t, filepath.Join(mnt, "place/others", name), "file", name)
	}
	run(t, "zfs", "snapshot", root+"/place/others/base@1")
	run(t, "zfs", "clone", root+"/place/others/base@1", root+"/place/others/top")
	sources := map[string]string{
		"plain": root + "/others/plain", "onto-copy": root + "/place/others/stranger",
		"base": root + "/place/others/base", "top": root + "/place/others/top", "stranger": root + "/place/others/stranger",
	}
	source := contents{}
	for name, volume := range sources {
		dir, err := dataset.Open(ctx, volume)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, dir.Close()) })
		source[name] = &migrate.Content{Dir: dir, Form: migrate.Whole, Volume: volume}
	}
	home := filepath.Join(mnt, "home") // not in the encrypted dataset
	backend, err := zfs.Open(ctx, home, root+"/place/volumes", zfs.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, backend.Close()) })
	forecast := migrate.NewForecast(source, func(ctx context.Context, layer *migrate.Layer, content *migrate.Content, below migrate.Coming) (migrate.How, int64, error) {
		return How(ctx, backend, home, layer, content, below, "")
	})
	layers := []migrate.Layer{
		{ID: "plain"}, {ID: "onto-copy", Parent: "plain"}, {ID: "base"}, {ID: "top", Parent: "base"}, {ID: "stranger", Parent: "base"},
	}
	want := map[string]migrate.How{
		"plain": migrate.Copied, "onto-copy": migrate.Copied, "base": migrate.Cloned, "top": migrate.Cloned, "stranger": migrate.Copied,
	}
	free, err := cowcommon.Free(ctx, backend)
	require.NoError(t, err)
	driver, ok := cowdriver.Lookup(zfs.Name)
	require.True(t, ok)
	planned, err := driver.Free(ctx, filepath.Join(t.TempDir(), "new"), []string{"zfs.fsname=" + root + "/place/volumes"})
	require.NoError(t, err)
	require.NoError(t, HasRoom(backend, home)(ctx, min(free, planned)/2))
	run(t, "zfs", "set", "quota=64M", root+"/place/volumes")
	err = HasRoom(backend, home)(ctx, 65<<20)
	require.ErrorIs(t, err, unix.ENOSPC, "the filesystem of the home has more")
	assert.ErrorContains(t, err, root+"/place/volumes has")
	for i := range layers {
		how, _, err := forecast.Next(ctx, &layers[i])
		require.NoError(t, err)
		assert.Equal(t, want[layers[i].ID], how, layers[i].ID)
	}
	for _, layer := range layers {
		report, err := Make(ctx, backend, source[layer.ID], Volume{Name: layer.ID, Parent: layer.Parent, Partial: "p"})
		require.NoError(t, err)
		assert.Equal(t, want[layer.ID], report.How, layer.ID)
	}
}
