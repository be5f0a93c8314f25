// Package inflate decompresses gzip (RFC 1952), which a layer waits for as a rule. It returns the data and the errors of
// compress/gzip in less than half of the time (BenchmarkInflate). Flags that the RFC reserves are an error, as the RFC says.
//
// A Reader takes less than 400 KiB, whatever it reads.
package inflate

import (
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
)

// Reader is the uncompressed data of a gzip stream of any number of members.
type Reader struct {
	d    decoder
	sum  uint32 // of the decoded data of this member
	size uint32
	from int // beginning of the unread data in out
	err  error
}

// NewReader reads the first header of r, which may be read further than the stream goes. Returns io.EOF where r is empty,
// io.ErrUnexpectedEOF where it ends in the header, and gzip.ErrHeader where there is none.
func NewReader(r io.Reader) (*Reader, error) {
	z := new(Reader)
	z.d.source = r
	if err := z.header(); err != nil {
		return nil, err
	}
	return z, nil
}

// Read implements io.Reader. Data is to be trusted when io.EOF has been returned. Returns gzip.ErrChecksum if the
// data does not fit its checksum and length. Returns a flate.CorruptInputError if the data cannot be decoded, and
// io.ErrUnexpectedEOF if the end is missing. Returns gzip.ErrHeader if anything else than a member comes after a
// member.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for z.from == z.d.at {
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.more()
	}
	n := copy(p, z.d.out[z.from:z.d.at])
	z.from += n
	return n, nil
}

// more decodes the next data, when all before has been read.
func (z *Reader) more() error {
	if z.d.at > full {
		z.d.slide()
	}
	z.from = z.d.at
	err := z.d.more()
	decoded := z.d.out[z.from:z.d.at]
	z.sum = crc32.Update(z.sum, crc32.IEEETable, decoded)
	z.size += uint32(len(decoded))
	if err != nil || z.d.state != atEnd {
		return err
	}
	if err := z.trailer(); err != nil {
		return err
	}
	return z.header()
}

// trailer checks the end of a member.
func (z *Reader) trailer() error {
	var b [8]byte
	z.d.align()
	if err := z.d.read(b[:]); err != nil {
		return noEOF(err)
	}
	if binary.LittleEndian.Uint32(b[:4]) != z.sum || binary.LittleEndian.Uint32(b[4:]) != z.size {
		return gzip.ErrChecksum
	}
	return nil
}

const (
	flagHeaderSum = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 7 << 5

	longestText = 512 // of a name or comment, with the 0 at its end
)

// header reads the header of a member, and begins its data.
func (z *Reader) header() error {
	var b [10]byte
	if err := z.d.read(b[:]); err != nil {
		return err
	}
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return gzip.ErrHeader
	}
	flags := b[3]
	h := headerReader{d: &z.d, sum: crc32.ChecksumIEEE(b[:])}
	if flags&flagExtra != 0 {
		size := h.read16()
		for range size {
			h.readByte()
		}
	}
	if flags&flagName != 0 {
		h.skipText()
	}
	if flags&flagComment != 0 {
		h.skipText()
	}
	if flags&flagHeaderSum != 0 {
		want := uint16(h.sum)
		if h.read16() != want && h.err == nil {
			h.err = gzip.ErrHeader
		}
	}
	if flags&flagReserved != 0 && h.err == nil {
		h.err = gzip.ErrHeader
	}
	z.sum, z.size = 0, 0
	z.d.reset()
	return h.err
}

// headerReader reads the parts of a header after its fixed part, up to the first error.
type headerReader struct {
	d   *decoder
	sum uint32
	err error
}

func (h *headerReader) readByte() byte {
	var b [1]byte
	if h.err == nil {
		h.err = noEOF(h.d.read(b[:]))
		h.sum = crc32.Update(h.sum, crc32.IEEETable, b[:])
	}
	return b[0]
}

func (h *headerReader) read16() uint16 { return uint16(h.readByte()) | uint16(h.readByte())<<8 }

func (h *headerReader) skipText() {
	for range longestText {
		if h.readByte() == 0 {
			return
		}
	}
	if h.err == nil {
		h.err = gzip.ErrHeader
	}
}
