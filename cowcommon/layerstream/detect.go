package layerstream

import "encoding/binary"

// Format is the format of a stream, as far as its first bytes tell.
type Format int

// Formats of streams.
const (
	Unknown Format = iota
	Framed         // a stream of this package
	Btrfs          // of btrfs send
	ZFS            // of zfs send
)

// DetectSize is how many bytes Detect needs.
const DetectSize = 16

const (
	btrfsMagic = "btrfs-stream\x00"
	zfsMagic   = 0x2F5bacbac // DMU_BACKUP_MAGIC, after the type DRR_BEGIN and a length of 32 bits each
)

// Detect tells the format of a stream by its first bytes.
func Detect(begin []byte) Format {
	switch {
	case hasPrefix(begin, Magic):
		return Framed
	case hasPrefix(begin, btrfsMagic):
		return Btrfs
	case len(begin) < DetectSize:
		return Unknown
	case binary.LittleEndian.Uint64(begin[8:]) == zfsMagic, binary.BigEndian.Uint64(begin[8:]) == zfsMagic:
		return ZFS
	}
	return Unknown
}

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

// Kind is the kind of the native streams of a format, as in a Header, "" if it is not one kind.
func (f Format) Kind() string {
	switch f {
	case Btrfs:
		return "btrfs"
	case ZFS:
		return "zfs"
	}
	return ""
}
