package sendstream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// magic begins every stream: BTRFS_SEND_STREAM_MAGIC with its terminating NUL.
const magic = "btrfs-stream\x00"

// Versions of the stream that a [Reader] reads and a [Writer] writes.
const (
	MinVersion = 1
	MaxVersion = 3
)

// headerSize is sizeof(struct btrfs_stream_header).
const headerSize = len(magic) + 4

// readHeader reads struct btrfs_stream_header and returns the version.
func readHeader(r io.Reader) (uint32, error) {
	var b [headerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, truncated(err)
	}
	if string(b[:len(magic)]) != magic {
		return 0, ErrNotStream
	}
	version := binary.LittleEndian.Uint32(b[len(magic):])
	if version < MinVersion || version > MaxVersion {
		return 0, fmt.Errorf("%w %d", ErrVersion, version)
	}
	return version, nil
}

// appendHeader appends struct btrfs_stream_header to b.
func appendHeader(b []byte, version uint32) []byte {
	return binary.LittleEndian.AppendUint32(append(b, magic...), version)
}
