package layertar

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"path/filepath"
	"strings"

	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/zero"
)

const (
	// maxHeader bounds the headers before the data of one entry. archive/tar bounds each extended header and each
	// sparse map (1 MiB), but not how many follow each other.
	maxHeader = 8 << 20
	// maxName bounds names and link targets: far more than PATH_MAX, far less than a header can hold.
	maxName = 64 << 10
	// maxSparse bounds the size of a sparse file, which may be any number for a few bytes of input.
	maxSparse = 2 << 40
	// paxXattr begins the keys of the PAX records that hold extended attributes, a convention of star.
	paxXattr = "SCHILY.xattr."
	// readBuffer is how much of the tar is read at once.
	readBuffer = 256 << 10
)

// entries reads the entries of a tar.
type entries struct {
	src      budgetReader
	tr       *tar.Reader
	looseEnd bool
	index    int64  // of the entry that next returned last; -1: none
	name     string // its name, as it stands in the header
}

func newEntries(ctx context.Context, r io.Reader, looseEnd bool) *entries {
	es := &entries{looseEnd: looseEnd, index: -1}
	es.src = budgetReader{ctx: ctx, r: bufio.NewReaderSize(r, readBuffer), left: math.MaxInt64}
	es.tr = tar.NewReader(&es.src)
	return es
}

// next returns the next header, PAX global headers left out, or io.EOF. Other errors are EntryErrors.
func (es *entries) next() (*tar.Header, error) {
	for {
		// The rest of the data must not count as header.
		_, err := io.Copy(io.Discard, es.tr)
		if err != nil {
			return nil, es.wrap(err)
		}
		es.src.startHeader()
		if es.looseEnd && es.src.ends() {
			return nil, io.EOF
		}
		hdr, err := es.tr.Next()
		es.src.left = math.MaxInt64
		if errors.Is(err, io.EOF) {
			if !es.src.nonzero { // two blocks of zeros, or nothing at all
				return nil, io.EOF
			}
			// archive/tar mistakes a tar that is cut off behind an extended header for a tar that ends there.
			err = io.ErrUnexpectedEOF
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: %w", ErrMalformed, err)
			}
			return nil, &EntryError{Index: es.index + 1, After: es.name, Err: err}
		}
		es.index++
		es.name = hdr.Name
		if hdr.Typeflag != tar.TypeXGlobalHeader {
			return hdr, nil
		}
	}
}

// wrap makes err an EntryError of the current entry.
func (es *entries) wrap(err error) error {
	var entry *EntryError
	if errors.As(err, &entry) {
		return err // of an earlier one
	}
	return &EntryError{Index: es.index, Name: es.name, Err: err}
}

// budgetReader reads until its context ends or its budget is spent.
type budgetReader struct {
	ctx     context.Context
	r       *bufio.Reader
	left    int64
	at      int64 // bytes read
	padding int   // how many of the next bytes are padding, which may be anything
	nonzero bool  // it has read something else than zeros, apart from padding
}

// startHeader begins to count the headers of an entry. Padding comes first, up to a multiple of 512.
func (b *budgetReader) startHeader() {
	b.left, b.padding, b.nonzero = maxHeader, int(-b.at&(blockSize-1)), false
}

// ends reports whether GNU tar would stop reading here. It asks for one block of zeros only, and ignores a block that
// is cut short. A reader that goes on gets the error if there is one.
func (b *budgetReader) ends() bool {
	block, err := b.r.Peek(b.padding + blockSize)
	if len(block) < b.padding {
		return false
	}
	rest := block[b.padding:]
	return errors.Is(err, io.EOF) || len(rest) == blockSize && zero.All(rest)
}

var errLongHeader = fmt.Errorf("%w: a header of more than %d bytes", ErrMalformed, maxHeader)

// Read implements io.Reader.
func (b *budgetReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, context.Cause(b.ctx)
	}
	if int64(len(p)) > b.left {
		return 0, errLongHeader
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	b.at += int64(n)
	padding := min(n, b.padding)
	b.padding -= padding
	b.nonzero = b.nonzero || !zero.All(p[padding:n])
	return n, err
}

// cleanName returns the path of an entry relative to the root, "." for the root itself. A path that leads
// above the root is an error.
func cleanName(name string) (string, error) {
	switch {
	case len(name) > maxName:
		return "", fmt.Errorf("%w: a name of %d bytes", ErrMalformed, len(name))
	case strings.IndexByte(name, 0) >= 0:
		return "", fmt.Errorf("%w: a name with a NUL byte", ErrMalformed)
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if !filepath.IsLocal(clean) {
		return "", fmt.Errorf("%w: the name leads out of the root", ErrMalformed)
	}
	return clean, nil
}

// isCowshedName reports whether a clean name, relative to the root, is Cowshed's own directory or below it.
func isCowshedName(name string) bool {
	rest, ok := strings.CutPrefix(name, sharedmark.Dir)
	return ok && (rest == "" || rest[0] == '/')
}

// splitName cuts a clean path that is not ".".
func splitName(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return ".", name
}

// isSparse says whether the data of an entry comes with a map of holes.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
