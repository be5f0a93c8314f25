package inflate

import (
	"math/rand/v2"
)

// bitWriter writes the parts of DEFLATE streams.
type bitWriter struct {
	b    []byte
	bits uint64
	n    uint
}

// put writes the n low bits of v, the lowest first.
func (w *bitWriter) put(v uint64, n uint) {
	w.bits |= v & (1<<n - 1) << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.b = append(w.b, byte(w.bits))
		w.bits >>= 8
	}
}

// code writes a code of n bits, the highest first.
func (w *bitWriter) code(v, n uint) {
	for n > 0 {
		n--
		w.put(uint64(v>>n&1), 1)
	}
}

func (w *bitWriter) bytes() []byte {
	if w.n > 0 {
		w.put(0, 8-w.n)
	}
	return w.b
}

func (w *bitWriter) fixedHeader() { w.put(1|1<<1, 3) }

// fixedMatch is a match of three bytes with distance 1 in a fixed block.
func (w *bitWriter) fixedMatch() {
	w.code(257-256, 7)
	w.code(0, 5)
}

// canonical returns the codes for lengths.
func canonical(lengths []uint8) []uint {
	codes := make([]uint, len(lengths))
	var code uint
	for n := uint8(1); n <= maxCodeLen; n++ {
		for symbol, l := range lengths {
			if l == n {
				codes[symbol] = code
				code++
			}
		}
		code <<= 1
	}
	return codes
}

// randomLengths are those of a complete code for some of n symbols, in which must has one.
func randomLengths(random *rand.Rand, n, must int) []uint8 {
	lengths := make([]uint8, n)
	// Leaves of a tree are split until there are enough, some of them again and again.
	leaves := []uint8{1, 1}
	want := 2 + random.IntN(n-1)
	deep := random.IntN(2) == 0
	for len(leaves) < want {
		i := random.IntN(len(leaves))
		if deep {
			i = len(leaves) - 1 - random.IntN(min(3, len(leaves)))
		}
		if leaves[i] == maxCodeLen {
			deep = false
			continue
		}
		leaves[i]++
		leaves = append(leaves, leaves[i])
	}
	symbols := random.Perm(n)
	for i, symbol := range symbols[:len(leaves)] {
		lengths[symbol] = leaves[i]
	}
	if lengths[must] == 0 {
		lengths[must], lengths[symbols[0]] = lengths[symbols[0]], 0
	}
	return lengths
}

// randomStream is gzip of some blocks with random codes and symbols, some of which are not allowed; its checksum is wrong as
// a rule.
func randomStream(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 7))
	w := &bitWriter{b: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}}
	size := 0
	for blocks := 1 + random.IntN(5); blocks > 0; blocks-- {
		last := uint64(0)
		if blocks == 1 {
			last = 1
		}
		if random.IntN(6) == 0 {
			size += storedBlock(w, random, last)
			continue
		}
		size += codedBlock(w, random, last, size)
	}
	return append(w.bytes(), make([]byte, 8)...)
}

func storedBlock(w *bitWriter, random *rand.Rand, last uint64) int {
	n := random.IntN(1000) * random.IntN(66)
	w.put(last, 3)
	if w.n > 0 {
		w.put(0, 8-w.n)
	}
	w.put(uint64(n)|uint64(n^0xffff)<<16, 32)
	for range n {
		w.put(random.Uint64(), 8)
	}
	return n
}

func codedBlock(w *bitWriter, random *rand.Rand, last uint64, before int) int {
	lits := randomLengths(random, 257+random.IntN(30), endOfBlock)
	dists := randomLengths(random, 2+random.IntN(29), 0)
	if random.IntN(5) == 0 { // one distance only
		dists = make([]uint8, 1+random.IntN(30))
		dists[random.IntN(len(dists))] = 1
	}
	w.put(last|2<<1, 3)
	w.put(uint64(len(lits)-257), 5)
	w.put(uint64(len(dists)-1), 5)
	w.put(15, 4)
	// All lengths up to 15 have a code of four bits.
	for _, symbol := range clOrder {
		if symbol < 16 {
			w.put(4, 3)
		} else {
			w.put(0, 3)
		}
	}
	for _, n := range append(append([]uint8(nil), lits...), dists...) {
		w.code(uint(n), 4)
	}
	litCodes, distCodes := canonical(lits), canonical(dists)
	size := 0
	for range random.IntN(40_000) {
		symbol := random.IntN(len(lits))
		if lits[symbol] == 0 || symbol == endOfBlock {
			continue
		}
		if symbol < endOfBlock {
			w.code(litCodes[symbol], uint(lits[symbol]))
			size++
			continue
		}
		dist := random.IntN(len(dists))
		e := distSymbols[dist]
		if dists[dist] == 0 || int(e>>16&0xffff)+int(e>>32&0xffff) > before+size && random.IntN(2000) > 0 {
			continue
		}
		w.code(litCodes[symbol], uint(lits[symbol]))
		mask := uint64(litSymbols[symbol] >> 25 & 31)
		extra := random.Uint64() & mask
		w.put(extra, uint(litSymbols[symbol]&entryLen))
		w.code(distCodes[dist], uint(dists[dist]))
		w.put(random.Uint64(), uint(e&entryLen))
		size += int(litSymbols[symbol]>>16&0x1ff) + int(extra)
	}
	w.code(litCodes[endOfBlock], uint(lits[endOfBlock]))
	return size
}
