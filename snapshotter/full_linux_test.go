package snapshotter

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestFullFilesystem: with data and metadata exhausted, existing snapshots can be read and removed, over and over,
// also after a start; and removing makes room.
func TestFullFilesystem(t *testing.T) {
	for _, mode := range modes {
		for _, level := range fillLevels() {
			t.Run(fmt.Sprintf("%s, %d", mode.name, level), func(t *testing.T) {
				testFull(t, onBtrfs(append(mode.opts, testfs.WithSize(256*mib))...), fullTest{level: level, many: 30})
			})
		}
	}
}

// fillLevels are the percentages of use to test at.
func fillLevels() []int {
	if testfs.Long() {
		return []int{95, 96, 97, 98, 99, 100}
	}
	return []int{100}
}

type fullTest struct {
	level   int  // percent of use
	many    int  // snapshots
	reserve bool // the filesystem keeps space for new snapshots that files cannot take
}

// testFull is TestFullFilesystem on one filesystem.
func testFull(t *testing.T, fs filesystem, test fullTest) {
	h := newHostOn(t, fs, Options{})
	ctx := t.Context()
	h.image("image")
	for i := range test.many {
		h.prepare(fmt.Sprintf("active-%02d", i), "image")
	}
	h.write("active-00", "large", make([]byte, 8*mib))
	h.prepare("unfinished", "image")
	require.NoDirExists(t, h.partial.dir, "an earlier version has not made it: the start below needs no space for it")
	testfs.Fill(t, h.mnt, testfs.Data, test.level)
	testfs.Fill(t, h.mnt, testfs.Metadata, test.level)
	before := h.state()

	if _, err := h.Prepare(ctx, "new", "image"); err == nil {
		require.True(t, test.level < 100 || test.reserve, "it is not full")
		require.NoError(t, h.Remove(ctx, "new"))
		require.NoError(t, h.Cleanup(ctx))
	} else {
		require.ErrorIs(t, err, unix.ENOSPC)
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		assert.NotErrorIs(t, err, unix.EDQUOT, "it is no limit of a snapshot")
	}
	assert.Equal(t, before, h.state(), "what has failed has left nothing")
	require.NoError(t, h.restart(nil), "it starts")
	require.NoError(t, h.crash())
	assert.Equal(t, before, h.state())
	assert.NotEmpty(t, h.mountType("active-00"))
	if _, err := h.Usage(ctx, "active-00"); err != nil {
		assert.ErrorIs(t, err, unix.ENOSPC)
	}
	if err := h.Commit(ctx, "committed", "unfinished"); err != nil {
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		assert.Equal(t, before, h.state())
	} else {
		require.NoError(t, h.Remove(ctx, "committed"))
	}
	for i := range test.many {
		key := fmt.Sprintf("active-%02d", i)
		require.NoError(t, h.Remove(ctx, key), key)
		if i%10 == 0 {
			require.NoError(t, h.Cleanup(ctx))
			_, err := h.Prepare(ctx, "new", "image") // may work by now; if not it leaves nothing
			if err == nil {
				require.NoError(t, h.Remove(ctx, "new"))
			} else {
				require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
			}
		}
	}
	require.NoError(t, h.restart(nil))
	require.NoError(t, os.RemoveAll(filepath.Join(h.mnt, "filler")))
	require.NoError(t, h.Cleanup(ctx))
	h.prepare("new", "image")
	h.write("new", "file", nil)
	assert.Empty(t, h.Lost())
}

// TestFrozenOnFullFilesystem: an active snapshot that a commit has left read-only is writable again when there is space
// for that; until then it can be read and removed.
func TestFrozenOnFullFilesystem(t *testing.T) {
	h := newHost(t, Options{}, testfs.WithSize(256*mib))
	ctx := t.Context()
	h.image("image")
	h.prepare("removed", "image")
	h.prepare("kept", "image")
	for _, key := range []string{"removed", "kept"} {
		require.NoError(t, cowcommon.Seal(ctx, h.backend, h.volume(key)))
	}
	testfs.Fill(t, h.mnt, testfs.Data, 100)
	testfs.Fill(t, h.mnt, testfs.Metadata, 100)
	require.NoError(t, h.crash())
	_, err := h.Mounts(ctx, "kept")
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.NoError(t, h.Remove(ctx, "removed"))
	require.NoError(t, h.Cleanup(ctx))
	require.NoError(t, os.RemoveAll(filepath.Join(h.mnt, "filler")))
	require.NotEmpty(t, h.mountType("kept"))
	h.write("kept", "file", nil)
	require.NoError(t, h.Cleanup(ctx))
	assert.Len(t, h.volumes(), 2)
	assert.Empty(t, h.ledger(thawing))
}

func (h *host) mountType(key string) string {
	h.t.Helper()
	mounts, err := h.Mounts(h.t.Context(), key)
	require.NoError(h.t, err)
	return mounts[0].Type
}

// TestMigrateMetadata: metadata of a version that did not keep it in place is copied once, if there is space.
func TestMigrateMetadata(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	before := h.state()
	require.NoError(t, h.restart(func(cowcommon.Backend) {
		old := h.copyMetadata()
		require.NoError(t, os.Remove(h.metadata()))
		h.rollBack(old)
		require.False(t, isInPlace(t, h.metadata()))
	}))
	assert.Equal(t, before, h.state())
	assert.True(t, isInPlace(t, h.metadata()))
	assert.NoFileExists(t, h.metadata()+".copy")
}

func isInPlace(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	require.NoError(t, err)
	const noCOW = 0x00800000
	return flags&noCOW != 0
}
