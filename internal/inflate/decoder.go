package inflate

import (
	"compress/flate"
	"io"
	"math/bits"
)

const (
	window  = 32 << 10 // of DEFLATE: how far back a match may be
	longest = 258      // match

	outSize = 256 << 10
	outMask = outSize - 1
	inSize  = 64 << 10
	inMask  = inSize - 1
	slack   = 32 // how far behind their output copied words may be written, and read

	// full is where the output has room for no further match.
	full = outSize - longest - slack
)

// state is the part of the stream that the decoder is at.
type state uint8

const (
	atHeader state = iota // of a block
	inStored              // in a stored block of which d.stored bytes are left
	inCoded               // in a block of codes
	atEnd                 // behind the last block
)

// decoder decodes a DEFLATE stream (RFC 1951) into a buffer, in which the window precedes new data.
//
// The arrays are in the structure, and have room beyond masked indexes. So the compiler checks no bounds in the loop
// that everything waits for.
type decoder struct {
	in       [inSize + slack]byte
	pos, end int // of the input that is unread

	bits uint64 // taken from in, the lowest first; 0 beyond n
	n    uint

	out  [outSize + slack]byte
	at   int // end of the decoded data in out
	base int // beginning of the data that matches may refer to

	state  state
	last   bool // this is the last block
	stored int
	fixed  bool // the tables are those of fixed blocks

	endLen uint // length of the code that ends a block: no fewer bits are left before it
	lits   [litEntries]litEntry
	dists  [distEntries]distEntry
	codes  codes

	source io.Reader
	failed error // of source
	offset int64 // of in, in source
}

// reset begins another stream.
func (d *decoder) reset() {
	d.state, d.last, d.base = atHeader, false, d.at
}

// slide makes room in out, and returns where the output goes on. The data before that has been used.
func (d *decoder) slide() {
	keep := max(d.base, d.at-window)
	copy(d.out[:], d.out[keep:d.at])
	d.at -= keep
	d.base = 0
}

// more decodes until out is full or the stream has ended: state is atEnd then. Data decoded before an error is in
// out.
func (d *decoder) more() error {
	for d.at <= full {
		var err error
		switch d.state {
		case atHeader:
			err = d.header()
		case inStored:
			if err = d.copyStored(); err == nil && d.stored == 0 {
				d.endBlock()
			}
		case inCoded:
			err = d.coded()
		case atEnd:
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// endBlock goes on to the next block or the end.
func (d *decoder) endBlock() {
	d.state = atHeader
	if d.last {
		d.state = atEnd
	}
}

// corrupt is the error of a stream that is no DEFLATE stream.
func (d *decoder) corrupt() error {
	return flate.CorruptInputError(d.offset + int64(d.pos) - int64(d.n/8))
}

// refill reads more of the source. in is used up.
func (d *decoder) refill() error {
	d.offset += int64(d.end)
	d.pos, d.end = 0, 0
	for empty := 0; d.failed == nil; empty++ {
		n, err := d.source.Read(d.in[:inSize])
		d.end, d.failed = n, err
		if n > 0 {
			return nil
		}
		if empty == 100 {
			d.failed = io.ErrNoProgress
		}
	}
	return d.failed
}

// need takes bits from in until there are that many, 56 at most.
func (d *decoder) need(n uint) error {
	for d.n < n {
		if d.pos == d.end {
			if err := d.refill(); err != nil {
				return noEOF(err)
			}
		}
		d.bits |= uint64(d.in[d.pos]) << d.n
		d.pos++
		d.n += 8
	}
	return nil
}

// noEOF is the error of a stream that has ended too early.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // an error that wraps io.EOF is another error
		return io.ErrUnexpectedEOF
	}
	return err
}

// take returns the next n bits, which are there.
func (d *decoder) take(n uint) int {
	v := d.bits & (1<<n - 1)
	d.bits >>= n
	d.n -= n
	return int(v)
}

// align drops the bits up to the next byte.
func (d *decoder) align() { d.take(d.n & 7) }

// read fills p with the next bytes. The error is io.EOF if there are none, and io.ErrUnexpectedEOF if there are too few.
func (d *decoder) read(p []byte) error {
	for i := range p {
		if d.n == 0 && d.pos == d.end {
			if err := d.refill(); err != nil {
				if i > 0 {
					err = noEOF(err)
				}
				return err
			}
		}
		if err := d.need(8); err != nil {
			return err
		}
		p[i] = byte(d.take(8))
	}
	return nil
}

// header reads the header of a block, and the tables before its data.
func (d *decoder) header() error {
	if err := d.need(3); err != nil {
		return err
	}
	d.last = d.take(1) == 1
	switch d.take(2) {
	case 0:
		return d.storedHeader()
	case 1:
		d.makeFixed()
	case 2:
		d.fixed = false
		if err := d.readCodes(); err != nil {
			return err
		}
	default:
		return d.corrupt()
	}
	d.state = inCoded
	return nil
}

func (d *decoder) storedHeader() error {
	d.align()
	if err := d.need(32); err != nil {
		return err
	}
	size, complement := d.take(16), d.take(16)
	if size != complement^0xffff {
		return d.corrupt()
	}
	d.state, d.stored = inStored, size
	return nil
}

// copyStored copies the available data of a stored block, as far as there is room.
func (d *decoder) copyStored() error {
	for d.stored > 0 && d.at < outSize {
		switch {
		case d.n > 0:
			d.out[d.at] = byte(d.take(8))
			d.at++
			d.stored--
		case d.pos == d.end:
			if err := d.refill(); err != nil {
				return noEOF(err)
			}
		default:
			n := copy(d.out[d.at:outSize], d.in[d.pos:min(d.end, d.pos+d.stored)])
			d.at += n
			d.pos += n
			d.stored -= n
		}
	}
	return nil
}

// makeFixed makes the tables of fixed blocks.
func (d *decoder) makeFixed() {
	if d.fixed {
		return
	}
	var lengths [maxLits]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	d.makeLits(lengths[:])
	d.endLen = 0
	for i := range maxDists {
		lengths[i] = 5
	}
	d.makeDists(lengths[:maxDists])
	d.fixed = true
}

// clOrder is the order in which the lengths of the codes for lengths come.
var clOrder = [numCLs]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the codes of a block.
func (d *decoder) readCodes() error {
	if err := d.need(14); err != nil {
		return err
	}
	lits, dists, cls := d.take(5)+257, d.take(5)+1, d.take(4)+4
	if lits > 286 || dists > 30 {
		return d.corrupt()
	}
	var clLengths [numCLs]uint8
	for _, symbol := range clOrder[:cls] {
		if err := d.need(3); err != nil {
			return err
		}
		clLengths[symbol] = uint8(d.take(3))
	}
	if !d.codes.sort(clLengths[:]) {
		return d.corrupt()
	}
	var table [1 << clRoot]litEntry
	fill(&d.codes, table[:], clRoot,
		func(symbol uint16, n int) litEntry { return litEntry(symbol)<<8 | litEntry(n) }, nil, litOther)

	var lengths [maxLits + maxDists]uint8
	if err := d.readLengths(lengths[:lits+dists], &table); err != nil {
		return err
	}
	if !d.makeLits(lengths[:lits]) || !d.makeDists(lengths[lits:lits+dists]) {
		return d.corrupt()
	}
	return nil
}

// readLengths reads the lengths of codes, which are coded by table.
func (d *decoder) readLengths(lengths []uint8, table *[1 << clRoot]litEntry) error {
	for i := 0; i < len(lengths); {
		e := table[d.bits&(1<<clRoot-1)]
		for d.n < uint(e&entryLen) {
			if err := d.need(d.n + 1); err != nil {
				return err
			}
			e = table[d.bits&(1<<clRoot-1)]
		}
		if e&litOther != 0 {
			return d.corrupt()
		}
		d.take(uint(e & entryLen))
		symbol := uint8(e >> 8)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		var value uint8
		repeat, extra := 3, uint(2)
		switch symbol {
		case 16:
			if i == 0 {
				return d.corrupt()
			}
			value = lengths[i-1]
		case 17:
			extra = 3
		case 18:
			repeat, extra = 11, 7
		}
		if err := d.need(extra); err != nil {
			return err
		}
		repeat += d.take(extra)
		if i+repeat > len(lengths) {
			return d.corrupt()
		}
		for range repeat {
			lengths[i] = value
			i++
		}
	}
	return nil
}

// coded decodes in a block of codes until it has ended or out is full.
func (d *decoder) coded() error {
	for d.state == inCoded && d.at <= full {
		if d.end-d.pos >= ahead {
			if !d.fast() {
				return d.corrupt()
			}
			continue
		}
		if err := d.symbol(); err != nil {
			return err
		}
	}
	return nil
}

// lit returns the entry of the next literal or length, the bits of which are there: of one literal, not two.
func (d *decoder) lit() (litEntry, error) {
	if err := d.need(d.endLen); err != nil {
		return 0, err
	}
	for {
		e := d.lits[d.bits&(1<<litRoot-1)]
		if e&(litLiteral|litOther) == litOther && e&litKind == litLink {
			e = d.lits[d.linked(uint(e>>16&0x1fff), uint(e>>8&15), litRoot)]
		}
		if uint(e>>8&15) <= d.n {
			return e, nil
		}
		if err := d.need(d.n + 1); err != nil {
			return 0, err
		}
	}
}

// linked returns which entry is meant of 1<<n, by the bits behind the root.
func (d *decoder) linked(first, n, root uint) uint { return first + uint(d.bits>>root)&(1<<n-1) }

// symbol decodes a literal or a match, with no more of the input than it takes.
func (d *decoder) symbol() error {
	e, err := d.lit()
	if err != nil {
		return err
	}
	switch {
	case e&litLiteral != 0:
		d.take(uint(e >> 8 & 15))
		d.out[d.at] = byte(e >> 16)
		d.at++
		return nil
	case e&litOther != 0:
		if e&litKind != litEnd {
			return d.corrupt()
		}
		d.take(uint(e & entryLen))
		d.endBlock()
		return nil
	}
	d.take(uint(e >> 8 & 15))
	mask := uint(e >> 25 & 31)
	extra := uint(bits.Len(mask))
	if err := d.need(extra); err != nil {
		return err
	}
	length := int(e>>16&0x1ff) + d.take(extra)
	distance, err := d.distance()
	if err != nil {
		return err
	}
	if distance > d.at-d.base {
		return d.corrupt()
	}
	for range length {
		d.out[d.at] = d.out[d.at-distance]
		d.at++
	}
	return nil
}

// distance decodes a distance.
func (d *decoder) distance() (int, error) {
	for {
		e := d.dists[d.bits&(1<<distRoot-1)]
		if e&distLink == distLink {
			e = d.dists[d.linked(uint(e>>16&0xffff), uint(e>>8&15), distRoot)]
		}
		n := uint(e >> 8 & 15)
		switch {
		case n > d.n:
			if err := d.need(d.n + 1); err != nil {
				return 0, err
			}
			continue
		case e&distOther != 0:
			return 0, d.corrupt()
		}
		d.take(n)
		extra := uint(bits.Len64(uint64(e >> 32 & 0xffff)))
		if err := d.need(extra); err != nil {
			return 0, err
		}
		return int(e>>16&0xffff) + d.take(extra), nil
	}
}
