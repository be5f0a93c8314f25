package loopstore

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAt(t *testing.T) {
	dir := t.TempDir()
	s, err := At(filepath.Join(dir, "store"))
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "store"), s.Root)
	assert.Equal(t, filepath.Join(dir, "store.img"), s.Image)

	_, err = At("/")
	require.Error(t, err, "the root directory")
}

func TestReadSuperblock(t *testing.T) {
	image := make([]byte, superblockOffset+superblockSize)
	block := image[superblockOffset:]
	copy(block[magicOffset:], magic)
	binary.LittleEndian.PutUint64(block[totalBytesOffset:], 1<<30)
	binary.LittleEndian.PutUint32(block[sectorSizeOffset:], 4096)
	copy(block[labelOffset:], Label)

	sb, err := readSuperblock(bytes.NewReader(image))
	require.NoError(t, err)
	assert.Equal(t, superblock{label: Label, totalBytes: 1 << 30, sectorSize: 4096}, sb)

	t.Run("a label without end", func(t *testing.T) {
		long := bytes.Clone(image)
		copy(long[superblockOffset+labelOffset:], bytes.Repeat([]byte{'x'}, labelSize))
		sb, err := readSuperblock(bytes.NewReader(long))
		require.NoError(t, err)
		assert.Len(t, sb.label, labelSize)
	})
	t.Run("other magic", func(t *testing.T) {
		other := bytes.Clone(image)
		other[superblockOffset+magicOffset] = 'x'
		_, err := readSuperblock(bytes.NewReader(other))
		require.ErrorIs(t, err, errNoBtrfs)
	})
	t.Run("too short", func(t *testing.T) {
		_, err := readSuperblock(bytes.NewReader(image[:len(image)-1]))
		require.ErrorIs(t, err, errNoBtrfs)
	})
	t.Run("empty", func(t *testing.T) {
		_, err := readSuperblock(bytes.NewReader(nil))
		require.ErrorIs(t, err, errNoBtrfs)
	})
}

func TestStateOfNothing(t *testing.T) {
	s, err := At(filepath.Join(t.TempDir(), "store"))
	require.NoError(t, err)
	state, err := s.State()
	require.NoError(t, err)
	assert.Equal(t, Absent, state)
	_, err = os.Stat(s.Root)
	require.ErrorIs(t, err, os.ErrNotExist, "looking makes nothing")
}

func TestFills(t *testing.T) {
	sb := superblock{totalBytes: 1 << 30, sectorSize: 4096}
	assert.True(t, sb.fills(1<<30))
	assert.True(t, sb.fills(1<<30+4095), "a part of a sector is of no use")
	assert.False(t, sb.fills(1<<30+4096))
}
