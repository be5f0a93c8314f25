package inflate

import "math/bits"

const (
	maxCodeLen = 15 // bits of the longest code

	litRoot  = 11 // bits of a literal/length code that are looked up at once
	distRoot = 9  // of a distance code
	clRoot   = 7  // of a code for the lengths of codes, which has no longer ones

	// Codes longer than a root share its entries with the same first bits, and there are at least two to a root.
	// Their remaining bits are at most maxCodeLen - root.
	litEntries  = 1<<litRoot + maxLits/2<<(maxCodeLen-litRoot)
	distEntries = 1<<distRoot + maxDists/2<<(maxCodeLen-distRoot)

	maxLits  = 288 // literals, the end of a block, lengths, and two symbols that are in no valid stream
	maxDists = 32  // with two that are in no valid stream
	numCLs   = 19

	endOfBlock = 256
)

// A literal or length code is an entry of 32 bits. The low six bits are always the number of bits that it takes of
// the stream.
//
//	literal   31: 1; 16-23: the literal; 8-11: length of the code
//	length    31, 30: 0; 25-29: mask of the extra bits; 16-24: least length; 8-11: length of the code
//	others    31: 0; 30: 1; 12-13: kind; 16-28: for link, the first of its entries; 8-11: its number of bits
type litEntry uint32

const (
	entryLen = 63 // mask of the bits that an entry takes

	litLiteral litEntry = 1 << 31
	litOther   litEntry = 1 << 30
	litKind    litEntry = 3 << 12
	litEnd     litEntry = 1 << 12 // kinds of others
	litLink    litEntry = 2 << 12
	litInvalid litEntry = 3 << 12
)

// A distance code is an entry of 64 bits. The low six bits are the number of bits that it takes of the stream.
//
//	distance  63: 0; 32-47: mask of the extra bits; 16-31: least distance; 8-11: length of the code
//	others    63: 1; 62: it is a link; 16-31: the first of its entries; 8-11: its number of bits
type distEntry uint64

const (
	distOther distEntry = 1 << 63
	distLink  distEntry = distOther | 1<<62
)

var (
	// litSymbols and distSymbols are entries without the length of the code.
	litSymbols  = makeLitSymbols()
	distSymbols = makeDistSymbols()
)

func makeLitSymbols() (s [maxLits]litEntry) {
	for i := range 256 {
		s[i] = litLiteral | litEntry(i)<<16
	}
	s[endOfBlock] = litOther | litEnd
	base := litEntry(3)
	for i := range 28 {
		extra := max(0, i/4-1)
		s[257+i] = base<<16 | (1<<extra-1)<<25 | litEntry(extra)
		base += 1 << extra
	}
	s[285] = 258 << 16
	s[286], s[287] = litOther|litInvalid, litOther|litInvalid
	return s
}

func makeDistSymbols() (s [maxDists]distEntry) {
	base := distEntry(1)
	for i := range 30 {
		extra := max(0, i/2-1)
		s[i] = base<<16 | (1<<extra-1)<<32 | distEntry(extra)
		base += 1 << extra
	}
	s[30], s[31] = distOther, distOther
	return s
}

// codes are the symbols of a code in its order.
type codes struct {
	count   [maxCodeLen + 1]uint16
	symbols [maxLits]uint16
	longest int
}

// sort reports whether the lengths are those of a code: of one in which each sequence of bits has a meaning, of one
// symbol with one bit, or of none.
func (c *codes) sort(lengths []uint8) bool {
	c.count = [maxCodeLen + 1]uint16{}
	for _, n := range lengths {
		c.count[n&maxCodeLen]++
	}
	c.count[0] = 0
	var next [maxCodeLen + 1]uint16
	left := 1 // of the sequences with n bits, those without a meaning
	c.longest = 0
	for n := 1; n <= maxCodeLen; n++ {
		next[n] = next[n-1] + c.count[n-1]
		if left = left<<1 - int(c.count[n]); left < 0 {
			return false
		}
		if c.count[n] > 0 {
			c.longest = n
		}
	}
	single := c.longest == 1 && c.count[1] == 1
	if left > 0 && c.longest > 0 && !single {
		return false
	}
	for symbol, n := range lengths {
		if n &= maxCodeLen; n > 0 {
			c.symbols[next[n]%maxLits] = uint16(symbol)
			next[n]++
		}
	}
	return true
}

// fill makes the table of a code. entry returns the entry of a symbol with a code of n bits. link returns the entry
// that leads to 1<<n entries, and invalid the entry of a sequence of n bits without meaning.
func fill[E litEntry | distEntry](c *codes, table []E, root int, entry func(symbol uint16, n int) E, link func(first, n int) E, invalid E) {
	if c.longest <= 1 {
		for i := range 1 << root {
			table[i] = invalid | E(c.longest)<<8 | E(c.longest)
		}
	}
	var (
		code int // with its bits in the order of the stream
		next int // symbol
		size = 1 // of the entries that are filled
	)
	for n := 1; n <= min(root, c.longest); n++ {
		copy(table[size:2*size], table[:size])
		size *= 2
		for range c.count[n] {
			table[code] = entry(c.symbols[next], n)
			next++
			code = increment(code, n)
		}
	}
	for size < 1<<root {
		copy(table[size:2*size], table[:size])
		size *= 2
	}
	if c.longest <= root {
		return
	}
	var (
		rest   = c.longest - root
		first  = 1<<root - 1<<rest // of the entries of the present prefix
		prefix = -1
	)
	for n := root + 1; n <= c.longest; n++ {
		for range c.count[n] {
			if code&(1<<root-1) != prefix {
				prefix = code & (1<<root - 1)
				first += 1 << rest
				table[prefix] = link(first, rest)
			}
			e := entry(c.symbols[next], n)
			for i := code >> root; i < 1<<rest; i += 1 << (n - root) {
				table[first+i] = e
			}
			next++
			code = increment(code, n)
		}
	}
}

// increment returns the code that follows a code of n bits.
func increment(code, n int) int {
	// The bits that are set at the end become 0, and the bit before them 1.
	keep := bits.Len(uint(^code & (1<<n - 1))) // bits up to the last that is not set
	if keep == 0 {
		return 0
	}
	return code&(1<<(keep-1)-1) | 1<<(keep-1)
}

// makeLits makes the table of literals and lengths, and reports whether it is a code.
func (d *decoder) makeLits(lengths []uint8) bool {
	if !d.codes.sort(lengths) {
		return false
	}
	fill(&d.codes, d.lits[:], litRoot,
		func(symbol uint16, n int) litEntry {
			return (litSymbols[symbol%maxLits] | litEntry(n)<<8) + litEntry(n)
		},
		func(first, n int) litEntry {
			return litOther | litLink | litEntry(first)<<16 | litEntry(n)<<8 | litRoot
		},
		litOther|litInvalid)
	d.endLen = uint(lengths[endOfBlock])
	return true
}

// makeDists makes the table of distances, and reports whether it is a code.
func (d *decoder) makeDists(lengths []uint8) bool {
	if !d.codes.sort(lengths) {
		return false
	}
	fill(&d.codes, d.dists[:], distRoot,
		func(symbol uint16, n int) distEntry {
			return (distSymbols[symbol%maxDists] | distEntry(n)<<8) + distEntry(n)
		},
		func(first, n int) distEntry { return distLink | distEntry(first)<<16 | distEntry(n)<<8 | distRoot },
		distOther)
	return true
}
