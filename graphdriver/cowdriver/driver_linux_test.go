package cowdriver_test

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

func newDriver(t *testing.T, options ...string) *cowdriver.Driver {
	t.Helper()
	d, err := btrfs.Init(filepath.Join(testfs.Btrfs(t), "btrfs"), options, user.IdentityMapping{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
	return d.(*cowdriver.Driver)
}

func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "0", "A.b_c:d-e", strings.Repeat("f", 64) + "-init", strings.Repeat("x", 200)} {
		assert.NoError(t, cowcommon.CheckID(id), id)
	}
	for _, id := range []string{"", ".", "..", "-a", ".a", "a/b", "../a", "a b", "a\n", "a\x00", "ä", "a+b", strings.Repeat("x", 201)} {
		assert.ErrorIs(t, cowcommon.CheckID(id), errdefs.ErrInvalidArgument, "%q", id)
	}
}

// TestOneApplyAtATime: two diffs at once would end in a mixture of both.
func TestOneApplyAtATime(t *testing.T) {
	d := newDriver(t)
	require.NoError(t, d.Create("layer", "", nil))
	r, w := io.Pipe()
	first := make(chan error)
	go func() {
		_, err := d.ApplyDiff("layer", "", r)
		first <- err
	}()
	archive := tar.NewWriter(w)
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o600, Size: 1}))
	_, err := d.ApplyDiff("layer", "", strings.NewReader(""))
	assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	_, err = archive.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, archive.Close())
	require.NoError(t, w.Close())
	require.NoError(t, <-first)
	require.NoError(t, d.Create("child", "layer", nil))
	_, err = d.ApplyDiff("layer", "", strings.NewReader(""))
	assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "sealed")
}

func TestOptionsAndMetadata(t *testing.T) {
	d := newDriver(t, "btrfs.size=40M", "btrfs.min_space=10M", "btrfs.quota=simple")
	require.NoError(t, d.Create("image", "", nil))
	require.NoError(t, d.CreateReadWrite("container", "image", nil))
	small := &graphdriver.CreateOpts{StorageOpt: map[string]string{"size": "5M"}}
	assert.ErrorIs(t, d.CreateReadWrite("small", "image", small), errdefs.ErrInvalidArgument)
	assert.False(t, d.Exists("small"))

	metadata, err := d.GetMetadata("container")
	require.NoError(t, err)
	assert.Equal(t, "image", metadata["Parent"])
	assert.Equal(t, "41943040", metadata["Limit"])
	assert.Equal(t, "layer", metadata["LimitScope"])
	assert.Equal(t, "false", metadata["Sealed"])
	assert.NotEmpty(t, metadata["SubvolumeID"])
	assert.Contains(t, metadata, "Usage")
	metadata, err = d.GetMetadata("image")
	require.NoError(t, err)
	assert.Equal(t, "true", metadata["Sealed"])
	assert.NotContains(t, metadata, "Limit")
	_, err = d.GetMetadata("missing")
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	assert.Contains(t, d.Status(), [2]string{"Default Size", "40MiB"})
	assert.Contains(t, d.Status(), [2]string{"Quota Scope", "layer"})
}

// TestUsageWithoutQuotas counts the changes of the layer, and nothing of its parent.
func TestUsageWithoutQuotas(t *testing.T) {
	d := newDriver(t, "btrfs.quota=off")
	require.NoError(t, d.Create("image", "", nil))
	write(t, d, "image", "large", 1<<20)
	require.NoError(t, d.CreateReadWrite("container", "image", nil))
	write(t, d, "container", "small", 1000)
	usage, err := d.Usage(t.Context(), "container")
	require.NoError(t, err)
	assert.EqualValues(t, 1000, usage.Bytes)
	assert.EqualValues(t, 1, d.CompareStats().Native)
}

// TestUsageOfSharedRoot: the files of a layer with a shared root are apart, so nothing is compared.
func TestUsageOfSharedRoot(t *testing.T) {
	d := newDriver(t, "btrfs.quota=off", "btrfs.root_style=shared")
	require.NoError(t, d.Create("image", "", nil))
	write(t, d, "image", "large", 1<<20)
	require.NoError(t, d.CreateReadWrite("container", "image", nil))
	write(t, d, "container", "small", 1000)
	usage, err := d.Usage(t.Context(), "container")
	require.NoError(t, err)
	assert.EqualValues(t, 1000, usage.Bytes)
	assert.Zero(t, d.CompareStats().Native)
}

func write(t *testing.T, d *cowdriver.Driver, id, name string, size int) {
	t.Helper()
	dir, err := d.Get(id, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600))
	require.NoError(t, d.Put(id))
}

// TestFallbackIsCountedAndGivesTheReason compares layers that have nothing to do with each other.
func TestFallbackIsCountedAndGivesTheReason(t *testing.T) {
	d := newDriver(t)
	for _, id := range []string{"one", "other"} {
		require.NoError(t, d.Create(id, "", nil))
		write(t, d, id, id, 10)
	}
	assert.Contains(t, d.Status(), [2]string{"Native Diff", "available"})
	c, err := d.Compare(t.Context(), "one", "other", cowcommon.Auto)
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.Close()) }()
	assert.False(t, c.Native)
	assert.Equal(t, "unrelated", c.Reason)
	assert.Len(t, c.Changes, 2)
	assert.Equal(t, cowcommon.CompareStats{Walked: map[string]uint64{"unrelated": 1}}, d.CompareStats())
	assert.Contains(t, d.Status(), [2]string{"Native Diff", "not used for the last diff: no hints: unrelated: the layers have no common ancestor"})

	require.NoError(t, d.Create("child", "one", nil))
	_, err = d.Changes("child", "one")
	require.NoError(t, err)
	assert.Contains(t, d.Status(), [2]string{"Native Diff", "available"})
}
