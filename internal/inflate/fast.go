package inflate

import "encoding/binary"

// ahead is how much of the input a round of fast may look at: two words.
const ahead = 16

// fast decodes as long as there is plenty of input and of room in out, or until the block ends. It reports whether the
// stream is valid so far.
func (d *decoder) fast() (valid bool) {
	var (
		pos, end = uint(d.pos), uint(d.end - ahead)
		at, base = uint(d.at), uint(d.base)
		buf      = d.bits
		n        = d.n
	)
	// Of buf, bits beyond n may be set: those that come next. A round begins with 56 bits and the entry of the first code. Three
	// literals take 33 at most, and a match 48: input is taken after either.
	valid = true
	buf |= load(&d.in, pos) << (n & 63)
	pos += (63 - n) >> 3
	n |= 56
	e := d.lits[buf&(1<<litRoot-1)]
	for pos <= end && at <= full {
		if int32(e) < 0 { // literals
			buf >>= e & entryLen
			n -= uint(e & entryLen)
			d.out[at&outMask] = byte(e >> 16)
			at++
			e = d.lits[buf&(1<<litRoot-1)]
			if int32(e) < 0 {
				buf >>= e & entryLen
				n -= uint(e & entryLen)
				d.out[at&outMask] = byte(e >> 16)
				at++
				e = d.lits[buf&(1<<litRoot-1)]
				if int32(e) < 0 {
					buf >>= e & entryLen
					n -= uint(e & entryLen)
					d.out[at&outMask] = byte(e >> 16)
					at++
					e = d.lits[buf&(1<<litRoot-1)]
					buf |= load(&d.in, pos) << (n & 63)
					pos += (63 - n) >> 3
					n |= 56
					continue
				}
			}
			buf |= load(&d.in, pos) << (n & 63)
			pos += (63 - n) >> 3
			n |= 56
		}
		if e&litOther != 0 {
			if e&litKind == litLink {
				e = d.lits[(uint(e>>16&0x1fff)+uint(buf>>litRoot)&(1<<(e>>8&15)-1))%litEntries]
			}
			if int32(e) < 0 {
				buf >>= e & entryLen
				n -= uint(e & entryLen)
				d.out[at&outMask] = byte(e >> 16)
				at++
				buf |= load(&d.in, pos) << (n & 63)
				pos += (63 - n) >> 3
				n |= 56
				e = d.lits[buf&(1<<litRoot-1)]
				continue
			}
			if e&litOther != 0 {
				buf >>= e & entryLen
				n -= uint(e & entryLen)
				if valid = e&litKind == litEnd; valid {
					d.endBlock()
				}
				break
			}
		}
		length := uint(e>>16&0x1ff) + uint(buf>>(e>>8&15))&uint(e>>25&31)
		buf >>= e & entryLen
		n -= uint(e & entryLen)

		de := d.dists[buf&(1<<distRoot-1)]
		if int64(de) < 0 {
			if de&distLink == distLink {
				de = d.dists[(uint(de>>16&0xffff)+uint(buf>>distRoot)&(1<<(de>>8&15)-1))%distEntries]
			}
			if int64(de) < 0 {
				valid = false
				break
			}
		}
		distance := uint(de>>16&0xffff) + uint(buf>>(de>>8&15))&uint(de>>32&0xffff)
		buf >>= de & entryLen
		n -= uint(de & entryLen)
		if distance > at-base {
			valid = false
			break
		}
		buf |= load(&d.in, pos) << (n & 63)
		pos += (63 - n) >> 3
		n |= 56
		e = d.lits[buf&(1<<litRoot-1)]
		from := at - distance
		to := at + length
		switch {
		case distance >= 8:
			store8(&d.out, at, load8(&d.out, from))
			store8(&d.out, at+8, load8(&d.out, from+8))
			for length > 16 {
				at += 16
				from += 16
				length -= min(length, 16)
				store8(&d.out, at, load8(&d.out, from))
				store8(&d.out, at+8, load8(&d.out, from+8))
			}
		case distance == 1: // a run of one byte
			word := uint64(d.out[from&outMask]) * 0x0101010101010101
			for ; at < to; at += 8 {
				store8(&d.out, at, word)
			}
		default:
			for ; at < to; at++ {
				d.out[at&outMask] = d.out[from&outMask]
				from++
			}
		}
		at = to
	}
	d.pos, d.at = int(pos), int(at)
	d.bits, d.n = buf&(1<<(n&63)-1), n
	return valid
}

func load(b *[inSize + slack]byte, i uint) uint64 {
	i &= inMask
	return binary.LittleEndian.Uint64(b[i : i+8])
}

func load8(b *[outSize + slack]byte, i uint) uint64 {
	i &= outMask
	return binary.LittleEndian.Uint64(b[i : i+8])
}

func store8(b *[outSize + slack]byte, i uint, v uint64) {
	i &= outMask
	binary.LittleEndian.PutUint64(b[i:i+8], v)
}
