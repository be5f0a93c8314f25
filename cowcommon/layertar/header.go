package layertar

import (
	"archive/tar"
	"io"
	"strings"
)

// blockSize is the unit of a tar.
const blockSize = 512

// Offsets and lengths in a header block (POSIX.1-2001, "ustar Interchange Format").
const (
	nameAt, nameLen         = 0, 100
	modeAt, modeLen         = 100, 8
	uidAt, uidLen           = 108, 8
	gidAt, gidLen           = 116, 8
	sizeAt, sizeLen         = 124, 12
	mtimeAt, mtimeLen       = 136, 12
	checksumAt, checksumLen = 148, 8
	typeAt                  = 156
	linkAt, linkLen         = 157, 100
	magicAt                 = 257
	devmajorAt, devmajorLen = 329, 8
	devminorAt, devminorLen = 337, 8
)

// writeHeader writes a header, the very bytes that archive/tar writes. Most headers of a layer are plain
// enough to be made here, at a fraction of the cost.
func writeHeader(w io.Writer, hdr *tar.Header) error {
	var b [blockSize]byte
	if plainHeader(&b, hdr) {
		_, err := w.Write(b[:])
		return err
	}
	// Of the header alone: written through a tar.Writer, the data would be copied once more.
	return tar.NewWriter(w).WriteHeader(hdr)
}

// plainHeader makes the block of a header that needs neither an extended header nor a prefix, and says
// whether hdr is one.
func plainHeader(b *[blockSize]byte, hdr *tar.Header) bool {
	if len(hdr.PAXRecords) > 0 || !plainString(hdr.Name, nameLen) || !plainString(hdr.Linkname, linkLen) || !plainKind(hdr) {
		return false
	}
	copy(b[nameAt:], hdr.Name)
	copy(b[linkAt:], hdr.Linkname)
	b[typeAt] = hdr.Typeflag
	copy(b[magicAt:], "ustar\x0000")
	ok := octal(b[modeAt:][:modeLen], hdr.Mode) &&
		octal(b[uidAt:][:uidLen], int64(hdr.Uid)) &&
		octal(b[gidAt:][:gidLen], int64(hdr.Gid)) &&
		octal(b[sizeAt:][:sizeLen], hdr.Size) &&
		octal(b[mtimeAt:][:mtimeLen], hdr.ModTime.Unix()) &&
		octal(b[devmajorAt:][:devmajorLen], hdr.Devmajor) &&
		octal(b[devminorAt:][:devminorLen], hdr.Devminor)
	if !ok {
		return false
	}
	checksum := b[checksumAt:][:checksumLen]
	copy(checksum, "        ")
	var total int64
	for _, c := range b {
		total += int64(c)
	}
	octal(checksum[:checksumLen-1], total)
	return true
}

// plainKind says whether a header has exactly the fields of its type. archive/tar has its own opinion of other
// headers.
func plainKind(hdr *tar.Header) bool {
	link, device, size := false, false, false
	switch hdr.Typeflag {
	case tar.TypeReg:
		size = true
	case tar.TypeDir, tar.TypeFifo:
	case tar.TypeLink, tar.TypeSymlink:
		link = true
	case tar.TypeChar, tar.TypeBlock:
		device = true
	default:
		return false
	}
	return hdr.Name != "" && strings.HasSuffix(hdr.Name, "/") == (hdr.Typeflag == tar.TypeDir) &&
		(link || hdr.Linkname == "") && (size || hdr.Size == 0) && (device || hdr.Devmajor == 0 && hdr.Devminor == 0)
}

// plainString says whether a string fits into a field as it is.
func plainString(s string, most int) bool {
	if len(s) > most {
		return false
	}
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] == 0 {
			return false
		}
	}
	return true
}

// octal fills a field with digits and a final NUL, and says whether n fits.
func octal(field []byte, n int64) bool {
	if n < 0 {
		return false
	}
	field[len(field)-1] = 0
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = '0' + byte(n&7)
		n >>= 3
	}
	return n == 0
}
