package loopstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// The primary superblock of a btrfs device (struct btrfs_super_block, include/uapi/linux/btrfs_tree.h).
const (
	superblockOffset = 64 << 10
	superblockSize   = 4096

	magicOffset      = 0x40
	totalBytesOffset = 0x70
	sectorSizeOffset = 0x90
	labelOffset      = 0x12b
	labelSize        = 256
)

var magic = []byte("_BHRfS_M")

// errNoBtrfs says that a file does not hold a btrfs.
var errNoBtrfs = errors.New("it does not hold a btrfs")

// superblock has the needed fields of a superblock.
type superblock struct {
	label      string
	totalBytes uint64
	sectorSize uint32
}

// fills reports whether the filesystem takes all of a device of that size, which it counts in sectors.
func (sb superblock) fills(size uint64) bool {
	return sb.totalBytes+uint64(sb.sectorSize) > size
}

func readSuperblock(r io.ReaderAt) (superblock, error) {
	block := make([]byte, superblockSize)
	if _, err := r.ReadAt(block, superblockOffset); err != nil {
		if errors.Is(err, io.EOF) {
			return superblock{}, errNoBtrfs
		}
		return superblock{}, err
	}
	if !bytes.Equal(block[magicOffset:][:len(magic)], magic) {
		return superblock{}, errNoBtrfs
	}
	label, _, _ := bytes.Cut(block[labelOffset:][:labelSize], []byte{0})
	return superblock{
		label:      string(label),
		totalBytes: binary.LittleEndian.Uint64(block[totalBytesOffset:]),
		sectorSize: binary.LittleEndian.Uint32(block[sectorSizeOffset:]),
	}, nil
}
