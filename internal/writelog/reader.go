// Package writelog reads logs of the writes to a disk, in the format of the kernel's dm-log-writes and of QEMU's
// blklogwrites. It makes from them the disk's content after a power cut. It is for tests.
//
// A log begins with a sector that holds the superblock. It has magic, version and the number of entries, 64 bits
// each, and the size of a sector, 32 bits, all little-endian. Each entry then has a sector of its own: first sector,
// number of sectors, flags and length of a note, 64 bits each. The written data follows it.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
)

// ErrFormat is wrapped by every error about the bytes of a log.
var ErrFormat = errors.New("not a log of dm-log-writes")

const (
	magic   = 0x6a736677736872
	version = 1

	smallestSector = 512
	largestSector  = 1 << 20
)

// Flags are the type of an entry.
type Flags uint64

// The flags of dm-log-writes. An entry without Discard and Mark is a write, perhaps an empty one.
const (
	Flush   Flags = 1 << iota // all that was written before is on the disk
	FUA                       // this write is on the disk
	Discard                   // the range is given up, and holds anything
	Mark                      // a note of the user
)

// Entry is one request to the disk.
type Entry struct {
	Offset, Length int64 // of the range of the disk, in bytes
	Flags          Flags
}

// Reader reads a log from its beginning. It is not safe for concurrent use.
type Reader struct {
	r      io.Reader
	sector []byte
	left   uint64 // entries
	unread int64  // bytes of the current entry that Read has not returned
	pad    int64  // bytes after these: the rest of the superblock's sector
}

// NewReader reads the superblock. Returns an error that wraps ErrFormat if it is none.
func NewReader(r io.Reader) (*Reader, error) {
	var super [smallestSector]byte
	if _, err := io.ReadFull(r, super[:]); err != nil {
		return nil, fmt.Errorf("superblock: %w: %w", ErrFormat, noEOF(err))
	}
	le := binary.LittleEndian
	sector := le.Uint32(super[24:])
	if le.Uint64(super[:]) != magic || le.Uint64(super[8:]) != version {
		return nil, fmt.Errorf("superblock: magic %#x, version %d: %w", le.Uint64(super[:]), le.Uint64(super[8:]), ErrFormat)
	}
	if sector < smallestSector || sector > largestSector || bits.OnesCount32(sector) != 1 {
		return nil, fmt.Errorf("superblock: sectors of %d bytes: %w", sector, ErrFormat)
	}
	log := &Reader{r: r, sector: make([]byte, sector), left: le.Uint64(super[16:]), pad: int64(sector) - smallestSector}
	return log, nil
}

// Next goes on to the next entry, whose data Read then returns. Returns io.EOF after the last one.
func (l *Reader) Next() (Entry, error) {
	if _, err := io.CopyN(io.Discard, l.r, l.unread+l.pad); err != nil {
		return Entry{}, fmt.Errorf("data of an entry: %w: %w", ErrFormat, noEOF(err))
	}
	l.unread, l.pad = 0, 0
	if l.left == 0 {
		return Entry{}, io.EOF
	}
	if _, err := io.ReadFull(l.r, l.sector); err != nil {
		return Entry{}, fmt.Errorf("entry: %w: %w", ErrFormat, noEOF(err))
	}
	l.left--
	le := binary.LittleEndian
	first, count := le.Uint64(l.sector), le.Uint64(l.sector[8:])
	flags, note := Flags(le.Uint64(l.sector[16:])), le.Uint64(l.sector[24:])
	size := uint64(len(l.sector))
	if first > math.MaxInt64/2/size || count > math.MaxInt64/2/size || note > math.MaxInt64/2 {
		return Entry{}, fmt.Errorf("entry: sector %d, %d sectors, note of %d bytes: %w", first, count, note, ErrFormat)
	}
	e := Entry{Offset: int64(first * size), Length: int64(count * size), Flags: flags}
	switch {
	case flags&Mark != 0: // the note follows the header, in the same sector
		if note > size-32 {
			return Entry{}, fmt.Errorf("entry: note of %d bytes: %w", note, ErrFormat)
		}
		e.Offset, e.Length = 0, 0
	case flags&Discard == 0:
		l.unread = e.Length
	}
	return e, nil
}

// Read returns the data of the current entry, and io.EOF at the end of it.
func (l *Reader) Read(p []byte) (int, error) {
	if l.unread == 0 {
		return 0, io.EOF
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.unread)])
	l.unread -= int64(n)
	if err != nil && l.unread > 0 {
		return n, fmt.Errorf("data of an entry: %w: %w", ErrFormat, noEOF(err))
	}
	return n, nil
}

// noEOF returns io.ErrUnexpectedEOF for io.EOF.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
