package zfs

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treecopy"
)

// TestScratch: a scratch tree is read-only and no volume, and goes with its view or when filling it fails.
func TestScratch(t *testing.T) {
	b, ctx := open(t), t.Context()
	v, err := b.Scratch(ctx, func(dir string) error { return os.WriteFile(dir+"/file", []byte("x"), 0o600) })
	require.NoError(t, err)
	assert.FileExists(t, v.Dir()+"/file")
	assert.ErrorIs(t, os.Remove(v.Dir()+"/file"), unix.EROFS)
	for volume, err := range b.Volumes(ctx) {
		require.NoError(t, err)
		assert.Fail(t, "a volume", volume.Name)
	}
	require.NoError(t, v.Close())
	require.NoError(t, v.Close())

	broken := errors.New("broken")
	_, err = b.Scratch(ctx, func(string) error { return broken })
	require.ErrorIs(t, err, broken)
	datasets, err := b.volumes.read(ctx)
	require.NoError(t, err)
	assert.Empty(t, datasets)
	entries, err := os.ReadDir(b.views)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// TestTreecopyClonesBlocks copies a file between datasets. OpenZFS shares its blocks where block cloning is on.
func TestTreecopyClonesBlocks(t *testing.T) {
	b, ctx := open(t), t.Context()
	const size = 16 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data)
	v, err := b.Scratch(ctx, func(src string) error {
		if err := os.WriteFile(src+"/file", data, 0o600); err != nil {
			return err
		}
		return syncFilesystem(src)
	})
	require.NoError(t, err)
	before := clonedBytes(t, b.zfs.pool)
	w, err := b.Scratch(ctx, func(dir string) error {
		src, err := os.Open(v.Dir())
		require.NoError(t, err)
		defer src.Close()
		dst, err := os.Open(dir)
		require.NoError(t, err)
		defer dst.Close()
		_, err = treecopy.Copy(ctx, dst, src, []archive.Change{{Path: "/file", Kind: archive.ChangeAdd}}, treecopy.Options{})
		return err
	})
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(w.Dir(), "file"))
	require.NoError(t, err)
	assert.Equal(t, data, got)
	cloned := clonedBytes(t, b.zfs.pool) - before
	enabled, _ := os.ReadFile("/sys/module/zfs/parameters/zfs_bclone_enabled")
	t.Logf("block cloning: %s, %d bytes", strings.TrimSpace(string(enabled)), cloned)
	if strings.TrimSpace(string(enabled)) == "1" {
		assert.GreaterOrEqual(t, cloned, int64(size))
	}
	require.NoError(t, w.Close())
	require.NoError(t, v.Close())
}

// clonedBytes returns how many bytes of a pool block cloning has saved.
func clonedBytes(t *testing.T, pool string) int64 {
	t.Helper()
	require.NoError(t, exec.Command("zpool", "sync", pool).Run())
	out, err := exec.Command("zpool", "get", "-Hp", "-o", "value", "bclonesaved", pool).Output()
	if err != nil {
		return 0 // before OpenZFS 2.2
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	require.NoError(t, err)
	return n
}
