package btrfs

import (
	"bytes"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// TestSendReceive moves a layer and its child to another filesystem. Of the child it sends the changes only.
func TestSendReceive(t *testing.T) {
	ctx := t.Context()
	from, to := open(t, testfs.Btrfs(t), Options{}), open(t, testfs.Btrfs(t), Options{})
	require.NoError(t, from.Create(ctx, "base", cowcommon.VolumeOptions{}))
	dir := tree(t, from, "base")
	require.NoError(t, writeBytes(dir+"/large", 5*mib))
	require.NoError(t, os.Mkdir(dir+"/d", 0o700))
	require.NoError(t, os.Symlink("large", dir+"/d/link"))
	require.NoError(t, from.Unmount(ctx, "base"))
	require.NoError(t, from.Clone(ctx, "child", "base", cowcommon.VolumeOptions{}))
	dir = tree(t, from, "child")
	require.NoError(t, os.Rename(dir+"/d", dir+"/e"))
	require.NoError(t, os.WriteFile(dir+"/e/new", []byte("new"), 0o600))
	require.NoError(t, from.Unmount(ctx, "child"))

	base, err := from.View(ctx, "base")
	require.NoError(t, err)
	child, err := from.View(ctx, "child")
	require.NoError(t, err)
	var whole, increment bytes.Buffer
	require.NoError(t, from.Send(ctx, &whole, nil, base))
	require.NoError(t, from.Send(ctx, &increment, base, child))
	assert.Less(t, increment.Len(), 4096)
	stream := bytes.Clone(increment.Bytes())

	assert.ErrorIs(t, to.Receive(ctx, "child", "base", bytes.NewReader(stream)), errdefs.ErrNotFound)
	require.NoError(t, to.Receive(ctx, "base", "", &whole))
	require.NoError(t, to.Receive(ctx, "child", "base", &increment))
	for name, view := range map[string]cowcommon.View{"base": base, "child": child} {
		got, err := to.View(ctx, name)
		require.NoError(t, err)
		differences, err := treecmp.Diff(view.Dir(), got.Dir(), treecmp.Options{})
		require.NoError(t, err)
		assert.Empty(t, differences, name)
		require.NoError(t, got.Close())
		require.NoError(t, view.Close())
		v, err := to.Stat(ctx, name)
		require.NoError(t, err)
		assert.True(t, v.Sealed)
	}
	assert.ErrorIs(t, to.Receive(ctx, "child", "base", bytes.NewReader(stream)), errdefs.ErrAlreadyExists)
	assert.Error(t, to.Receive(ctx, "cut", "base", bytes.NewReader(stream[:len(stream)-9])))
	stream[len(stream)/2] ^= 1
	assert.Error(t, to.Receive(ctx, "corrupt", "base", bytes.NewReader(stream)))
	assertClean(t, to, "base", "child")
}
