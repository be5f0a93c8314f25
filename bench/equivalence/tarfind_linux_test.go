package equivalence

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// Bounds of the comparison. A larger tar, or a tar of more files, is only searched for tars. Tars deeper inside
// others are not found.
const (
	maxTar    = 64 << 20 // bytes of a tar
	maxFiles  = 1000
	maxSparse = 128 << 20 // bytes of the sparse files of a tar, which peers write out
	maxNested = 3
)

// sample is a tar of the corpus, uncompressed.
type sample struct {
	name string // the file that holds it, and the tars inside one another, with "!" between them
	data []byte
	hdrs []*tar.Header // as far as it can be read
}

// finder finds tars in files, in other tars, and so in the packages and images that tars are, each content once.
// Compression is undone, as are the text forms in which test data is kept.
type finder struct {
	seen    map[[sha256.Size]byte]bool
	found   func(sample)
	skipped []string // names of tars that are beyond the bounds
}

// tarName matches names that promise a tar.
var tarName = regexp.MustCompile(`(?i)\.(tar|tgz|txz|tbz2?|tzst|crate|gem)(\.(gz|bz2|xz|zst|base64|uu))*$`)

// textName matches names of files of which the text is a file.
var textName = regexp.MustCompile(`(?i)\.(base64|uu)$`)

// tree finds the tars below a directory. Symbolic links are not followed.
func (f *finder) tree(name, dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		// Others than these are source text. A blob is part of an OCI layout.
		if !tarName.MatchString(p) && !textName.MatchString(p) && !strings.Contains(rel, "testdata/") && !strings.Contains(rel, "blobs/") {
			return nil
		}
		file, err := os.Open(p)
		if err != nil {
			return err
		}
		defer file.Close()
		return f.stream(name+"/"+rel, file, 0)
	})
}

// stream finds the tars in a file. A file that cannot be read as its apparent type is no tar.
func (f *finder) stream(name string, r io.Reader, depth int) error {
	br := bufio.NewReaderSize(r, 64<<10)
	if textName.MatchString(name) {
		text, err := decodeText(name, br)
		if err != nil {
			return nil // ordinary text, or cut off
		}
		br = bufio.NewReader(bytes.NewReader(text))
	}
	unpacked, format, err := layertar.Decompress(br)
	if errors.Is(err, errdefs.ErrNotImplemented) {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err != nil {
		return nil // not compressed data, whatever it begins with
	}
	defer unpacked.Close()
	head, err := io.ReadAll(io.LimitReader(unpacked, blockSize))
	switch {
	case err != nil:
		return nil // as above
	case !isTar(head) && (format != layertar.Plain || !tarName.MatchString(name)):
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(io.MultiReader(bytes.NewReader(head), unpacked), maxTar+1))
	if err != nil {
		return nil // as above
	}
	if len(data) > maxTar {
		f.skipped = append(f.skipped, name)
		if depth > 0 {
			return nil // it may unfold to anything
		}
		return f.nested(name, io.MultiReader(bytes.NewReader(data), unpacked), depth)
	}
	sum := sha256.Sum256(data)
	if f.seen[sum] {
		return nil
	}
	f.seen[sum] = true
	switch hdrs := headersOf(data); {
	case sparseBytes(hdrs) > maxSparse:
		f.skipped = append(f.skipped, name)
		return nil
	case len(hdrs) > maxFiles:
		f.skipped = append(f.skipped, name)
	default:
		f.found(sample{name, data, hdrs})
		if rest := understood(data); rest != nil {
			f.found(sample{name + " without entries that a tool refuses", rest, headersOf(rest)})
		}
	}
	return f.nested(name, bytes.NewReader(data), depth)
}

// nested finds the tars among the files of a tar.
func (f *finder) nested(name string, r io.Reader, depth int) error {
	if depth == maxNested {
		return nil
	}
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil // the end, or where it is malformed
		}
		if hdr.Typeflag != tar.TypeReg || hdr.Size == 0 {
			continue
		}
		if err := f.stream(name+"!"+hdr.Name, tr, depth+1); err != nil {
			return err
		}
	}
}

const (
	blockSize = 512
	maxID     = 1<<32 - 2 // chown(2) takes the next for "do not change"
)

// isTar says whether data begins with the header of a tar, which its checksum tells.
func isTar(head []byte) bool {
	if len(head) < blockSize {
		return false
	}
	want, err := strconv.ParseInt(strings.Trim(string(head[148:156]), " \x00"), 8, 64)
	if err != nil {
		return false
	}
	sum := int64(8 * ' ')
	for i, c := range head[:blockSize] {
		if i < 148 || i >= 156 {
			sum += int64(c)
		}
	}
	return sum == want
}

// sparseBytes sums up the sizes of the sparse files of a tar.
func sparseBytes(hdrs []*tar.Header) int64 {
	sum := int64(0)
	for _, hdr := range hdrs {
		if _, ok := hdr.PAXRecords["GNU.sparse.major"]; ok || hdr.Typeflag == tar.TypeGNUSparse {
			sum += hdr.Size
		}
	}
	return sum
}

// headersOf returns the headers of a tar, as far as it can be read.
func headersOf(data []byte) []*tar.Header {
	var hdrs []*tar.Header
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := tr.Next()
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return hdrs
		}
		hdrs = append(hdrs, hdr)
	}
}

// understood returns a tar without the entries that some tool refuses for their type or owner, which would hide later
// entries. It returns nil if there are no such entries, or no others. TestDifferencesInApplying has such entries.
func understood(data []byte) []byte {
	var kept []byte
	r := bytes.NewReader(data)
	tr := tar.NewReader(struct{ io.Reader }{r}) // it cannot seek, so that r is where the entry ends
	refused := false
	for start := 0; ; {
		hdr, err := tr.Next()
		if err == nil {
			_, err = io.Copy(io.Discard, tr)
		}
		if err != nil {
			break
		}
		end := min(len(data), (len(data)-r.Len()+blockSize-1)&^(blockSize-1))
		if strings.IndexByte("0123456g", hdr.Typeflag) >= 0 && hdr.Uid <= maxID && hdr.Gid <= maxID {
			kept = append(kept, data[start:end]...)
		} else {
			refused = true
		}
		start = end
	}
	if !refused || len(kept) == 0 {
		return nil
	}
	return append(kept, make([]byte, 2*blockSize)...)
}

// decodeText returns the file that is kept as text.
func decodeText(name string, r io.Reader) ([]byte, error) {
	r = io.LimitReader(r, 2*maxTar)
	if strings.HasSuffix(strings.ToLower(name), ".base64") {
		return io.ReadAll(base64.NewDecoder(base64.StdEncoding, r))
	}
	return uudecode(r)
}

// uudecode decodes the form of uuencode(1).
func uudecode(r io.Reader) ([]byte, error) {
	var data []byte
	lines := bufio.NewScanner(r)
	begun := false
	for lines.Scan() {
		line := lines.Bytes()
		switch {
		case !begun:
			begun = bytes.HasPrefix(line, []byte("begin "))
			continue
		case len(line) == 0 || string(line) == "end":
			return data, lines.Err()
		}
		n := int(line[0]-' ') & 0x3f
		if len(line) < 1+(n+2)/3*4 {
			return nil, io.ErrUnexpectedEOF
		}
		end := len(data) + n
		for line = line[1:]; len(data) < end; line = line[4:] {
			var v uint32
			for _, c := range line[:4] {
				v = v<<6 | uint32(c-' ')&0x3f
			}
			data = append(data, byte(v>>16), byte(v>>8), byte(v))
		}
		data = data[:end]
	}
	return data, lines.Err()
}
