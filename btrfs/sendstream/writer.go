package sendstream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Writer encodes a stream. It is not safe for concurrent use.
type Writer struct {
	w       io.Writer
	encoder encoder
	err     error
}

// NewWriter writes the header of a stream of that version, MinVersion to MaxVersion.
func NewWriter(w io.Writer, version uint32) (*Writer, error) {
	if version < MinVersion || version > MaxVersion {
		return nil, fmt.Errorf("%w %d", ErrVersion, version)
	}
	if _, err := w.Write(appendHeader(nil, version)); err != nil {
		return nil, err
	}
	return &Writer{w: w, encoder: encoder{version: version}}, nil
}

// Write writes one command in one call of the underlying writer. An [End] completes a stream.
//
// Returns ErrMalformed if a Reader would not accept a value. Returns ErrTooLong if the command is longer than the
// stream's version allows. An error of the underlying writer is also the error of all later calls.
func (w *Writer) Write(c Command) error {
	if w.err != nil {
		return w.err
	}
	b, err := w.encoder.encode(c)
	if err != nil {
		return fmt.Errorf("btrfs send stream: %v: %w", c.Op(), err)
	}
	_, w.err = w.w.Write(b)
	return w.err
}

// encoder is the visitor that writes the attributes of one command. The first error stays.
type encoder struct {
	buf     []byte // reused
	version uint32
	err     error
}

// encode returns the command's bytes, which are valid until the next encode.
func (e *encoder) encode(c Command) ([]byte, error) {
	e.buf = append(e.buf[:0], make([]byte, commandHeaderSize)...)
	e.err = nil
	c.attributes(e)
	if e.err != nil {
		return nil, e.err
	}
	if len(e.buf) > maxCommandSize(e.version) {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLong, len(e.buf))
	}
	header, payload := e.buf[:commandHeaderSize], e.buf[commandHeaderSize:]
	binary.LittleEndian.PutUint32(header, uint32(len(payload)))
	binary.LittleEndian.PutUint16(header[4:], uint16(c.Op()))
	binary.LittleEndian.PutUint32(header[6:], checksum(header, payload))
	return e.buf, nil
}

const maxAttrSize = 1<<16 - 1

// begin writes the header of an attribute of size bytes. It returns false after an error, also of an earlier attribute.
func (e *encoder) begin(a Attr, size int) bool {
	if e.err != nil {
		return false
	}
	if size > maxAttrSize {
		e.err = malformed(a, "has %d bytes", size)
		return false
	}
	e.buf = binary.LittleEndian.AppendUint16(e.buf, uint16(a))
	e.buf = binary.LittleEndian.AppendUint16(e.buf, uint16(size))
	return true
}

func (*encoder) optional(Attr) {}

func (e *encoder) uuid(a Attr, p *UUID) {
	if e.begin(a, len(p)) {
		e.buf = append(e.buf, p[:]...)
	}
}

func (e *encoder) u8(a Attr, p *uint8) {
	if e.begin(a, 1) {
		e.buf = append(e.buf, *p)
	}
}

func (e *encoder) u32(a Attr, p *uint32) {
	if e.begin(a, 4) {
		e.buf = binary.LittleEndian.AppendUint32(e.buf, *p)
	}
}

func (e *encoder) u64(a Attr, p *uint64) {
	if e.begin(a, 8) {
		e.buf = binary.LittleEndian.AppendUint64(e.buf, *p)
	}
}

func (e *encoder) time(a Attr, p *Timespec) {
	if a == AttrOtime && e.version == 1 && *p == (Timespec{}) {
		return // the kernel does not write it before version 2
	}
	if p.Nsec >= nsecPerSec && e.err == nil {
		e.err = malformed(a, "has %d nanoseconds", p.Nsec)
	}
	if e.begin(a, 12) {
		e.buf = binary.LittleEndian.AppendUint64(e.buf, uint64(p.Sec))
		e.buf = binary.LittleEndian.AppendUint32(e.buf, p.Nsec)
	}
}

func (e *encoder) bytes(a Attr, p *[]byte) {
	if e.begin(a, len(*p)) {
		e.buf = append(e.buf, *p...)
	}
}

func (e *encoder) path(a Attr, p *[]byte) {
	if err := checkPath(*p); err != nil && e.err == nil {
		e.err = malformed(a, "%v", err)
	}
	e.bytes(a, p)
}

func (e *encoder) data(p *[]byte) {
	if e.version == 1 {
		e.bytes(AttrData, p)
		return
	}
	if e.err == nil {
		e.buf = binary.LittleEndian.AppendUint16(e.buf, uint16(AttrData))
		e.buf = append(e.buf, *p...)
	}
}
