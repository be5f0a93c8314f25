package fill

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
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
			for _, how := range []func() (migrate.How, int64, error){
				func() (migrate.How, int64, error) {
					return How(ctx, backend, home, &migrate.Layer{Size: 123}, content)
				},
				func() (migrate.How, int64, error) {
					return HowNew(ctx, filepath.Join(home, "new"), &migrate.Layer{Size: 123}, content)
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
