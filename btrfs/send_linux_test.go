package btrfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
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

// TestReceivePublishes: a received volume is sealed and known as received before it has its name. If it cannot get the name,
// nothing is left.
func TestReceivePublishes(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	from := received{uuid: btrfsctl.UUID{0xab}, ctransid: 7}
	crash := errors.New("a crash")
	err := b.stage(ctx, "x", cowcommon.VolumeOptions{}, false, recipe{
		create: func(staged string) error { return b.createStaged(staged, quota.Inherited{}) },
		publish: func(staged string, dir *subvolume, _ func(*os.File, string) error) error {
			return b.publishReceived(staged, "x", dir, from, func(at *os.File, as string) error {
				assert.Empty(t, volumes(t, b))
				assert.True(t, strings.HasPrefix(as, removedPrefix), "the next start destroys it")
				hidden, err := b.openSubvolume(at, as)
				require.NoError(t, err)
				assert.True(t, hidden.info.ReadOnly)
				assert.Equal(t, from.uuid, hidden.info.ReceivedUUID)
				require.NoError(t, hidden.Close())
				return crash
			})
		},
	})
	require.ErrorIs(t, err, crash)
	assertClean(t, b)

	// Another volume gets the name while the stream is received.
	stream := encode(t, subvol(), mkfile("f", 1), &sendstream.End{})
	makes := readerFunc(func([]byte) (int, error) {
		require.NoError(t, b.Create(ctx, "x", cowcommon.VolumeOptions{}))
		return 0, io.EOF
	})
	err = b.Receive(ctx, "x", "", io.MultiReader(bytes.NewReader(stream.Bytes()[:20]), makes, bytes.NewReader(stream.Bytes()[20:])))
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	assertClean(t, b, "x")
	v, err := b.Stat(ctx, "x")
	require.NoError(t, err)
	assert.False(t, v.Sealed)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestSendMadeWritable: a received volume that was made writable has the received UUID, and perhaps another content.
func TestSendMadeWritable(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	require.NoError(t, b.Receive(ctx, "x", "", encode(t, subvol(), mkfile("f", 1), &sendstream.End{})))
	viewOf := func() cowcommon.View {
		v, err := b.View(ctx, "x")
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, v.Close()) })
		return v
	}
	sealed := viewOf()
	received := sealed.(*view).dir.info.ReceivedUUID
	identity, err := b.Identify(ctx, sealed)
	require.NoError(t, err)
	assert.True(t, identity.Has(received[:]))
	require.NoError(t, b.Send(ctx, io.Discard, nil, sealed))
	require.NoError(t, sealed.Close())
	volume, err := b.openVolume("x")
	require.NoError(t, err)
	require.NoError(t, btrfsctl.SetReadOnly(volume.fd(), false))
	require.NoError(t, volume.Close())
	changed := viewOf()
	_, err = b.Identify(ctx, changed)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorIs(t, b.Send(ctx, io.Discard, nil, changed), errdefs.ErrFailedPrecondition)
	require.NoError(t, b.Create(ctx, "y", cowcommon.VolumeOptions{}))
	y, err := b.View(ctx, "y")
	require.NoError(t, err)
	require.ErrorIs(t, b.Send(ctx, io.Discard, changed, y), errdefs.ErrFailedPrecondition)
	require.NoError(t, y.Close())

	// Its moments do not have that UUID, and can be sent.
	require.NoError(t, b.takeMoment(ctx, "x", "moment"))
	moment, err := b.View(ctx, "moment")
	require.NoError(t, err)
	identity, err = b.Identify(ctx, moment)
	require.NoError(t, err)
	assert.False(t, identity.Has(received[:]))
	require.NoError(t, b.Send(ctx, io.Discard, nil, moment))
	require.NoError(t, moment.Close())
}

// TestSealMadeWritable: a received volume that was made writable and is sealed again does not have the received UUID.
func TestSealMadeWritable(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	require.NoError(t, b.Receive(ctx, "x", "", encode(t, subvol(), mkfile("f", 1), &sendstream.End{})))
	volume, err := b.openVolume("x")
	require.NoError(t, err)
	received := volume.info.ReceivedUUID
	require.NotZero(t, received)
	require.NoError(t, b.Seal(ctx, "x"))
	require.NoError(t, volume.Close())

	volume, err = b.openVolume("x")
	require.NoError(t, err)
	require.Equal(t, received, volume.info.ReceivedUUID, "it was sealed all the time")
	require.NoError(t, btrfsctl.SetReadOnly(volume.fd(), false))
	require.NoError(t, volume.Close())
	require.NoError(t, b.Seal(ctx, "x"))
	view, err := b.View(ctx, "x")
	require.NoError(t, err)
	identity, err := b.Identify(ctx, view)
	require.NoError(t, err)
	assert.False(t, identity.Has(received[:]))
	require.NoError(t, view.Close())
}
