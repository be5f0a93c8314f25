package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// rawEntry makes an entry (POSIX.1-2001, "ustar Interchange Format") whose header says a size that its data need not have.
func rawEntry(kind byte, name, link string, size int, data string) []byte {
	b := make([]byte, tarBlock)
	copy(b, name)
	copy(b[100:], "0000755\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
	b[156] = kind
	copy(b[157:], link)
	copy(b[257:], "ustar\x0000")
	sum := 8 * int(' ')
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return slices.Concat(b, []byte(data), make([]byte, -len(data)&(tarBlock-1)))
}

func rawFile(name, data string) []byte { return rawEntry(tar.TypeReg, name, "", len(data), data) }

// rawTar joins entries to a tar.
func rawTar(entries ...[]byte) []byte {
	return append(bytes.Join(entries, nil), make([]byte, 2*tarBlock)...)
}

// dirty puts other bytes than zeros into the padding at the end of an entry.
func dirty(e []byte) []byte {
	copy(e[len(e)-7:], "rubbish")
	return e
}

// noise is data that is never twice the same in 512 bytes.
func noise(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d,", i)
	}
	return b.String()[:n]
}

func kind(typeflag byte, link string) func(*tar.Header) {
	return func(h *tar.Header) { h.Typeflag, h.Linkname = typeflag, link }
}

// oddSparse makes a sparse file whose pieces begin and end anywhere (GNU tar's format 0.1).
func oddSparse() []byte {
	pieces := []struct{ at, size int }{{0, 1}, {10, 90}, {511, 2}, {5000, 100}, {5100, 50}, {8000, 500}, {8700, 9000}, {40_000, 0}}
	var list []string
	data := noise(20_000)
	n := 0
	for _, p := range pieces {
		list = append(list, fmt.Sprint(p.at), fmt.Sprint(p.size))
		n += p.size
	}
	var records strings.Builder
	for _, r := range []string{"major=0", "minor=1", "name=odd", "size=40000", fmt.Sprint("numblocks=", len(pieces)), "map=" + strings.Join(list, ",")} {
		r = " GNU.sparse." + r + "\n"
		size := len(r) + 2
		if size >= 100 {
			size++
		}
		fmt.Fprint(&records, size, r)
	}
	header := records.String()
	return rawTar(rawEntry(tar.TypeXHeader, "x", "", len(header), header), rawEntry(tar.TypeReg, "odd", "", n, data[:n]))
}
