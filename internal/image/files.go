package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// files is a set of named regular files: a directory or a tar. Names are slash-separated and relative.
type files interface {
	// open opens a file and returns its size. Returns fs.ErrNotExist if there is no file of that name.
	open(name string) (io.ReadCloser, int64, error)
	close() error
}

// has reports whether there is a file of that name.
func has(f files, name string) bool {
	r, _, err := f.open(name)
	if err != nil {
		return false
	}
	return r.Close() == nil
}

// readFile reads a file of up to limit bytes.
func readFile(f files, name string, limit int64) ([]byte, error) {
	r, _, err := f.open(name)
	if err != nil {
		return nil, err
	}
	data, err := readDocument(r, limit)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

// dirFiles are the files below a directory. Symbolic links that lead out of it do not resolve.
type dirFiles struct{ root *os.Root }

func openDir(dir string) (*dirFiles, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &dirFiles{root}, nil
}

func (d *dirFiles) open(name string) (io.ReadCloser, int64, error) {
	// A fifo would block the open.
	info, err := d.root.Stat(name)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("not a regular file: %w", ErrMalformed)}
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (d *dirFiles) close() error { return d.root.Close() }

// tarFiles are the files in a tar that is read at random. Links are followed inside the tar only, by name.
type tarFiles struct {
	r       io.ReaderAt
	closeFn func() error
	files   map[string]span
	links   map[string]string
}

type span struct{ offset, size int64 } // bytes

const maxLinks = 8 // in a row

// indexTar reads the headers of the tar in f.
func indexTar(f io.ReadSeeker, r io.ReaderAt, closeFn func() error) (*tarFiles, error) {
	t := &tarFiles{r: r, closeFn: closeFn, files: make(map[string]span), links: make(map[string]string)}
	tr := tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", n, err)
		}
		if n == maxArchiveEntries {
			return nil, fmt.Errorf("more than %d entries: not the archive of an image: %w", maxArchiveEntries, errTooLarge)
		}
		// The reader has read just the header: the bytes of the file follow in f.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := t.add(h, offset); err != nil {
			return nil, fmt.Errorf("entry %q: %w", clip(h.Name), err)
		}
	}
}

func (t *tarFiles) add(h *tar.Header, offset int64) error {
	name := path.Clean(strings.TrimPrefix(h.Name, "/"))
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		if isSparse(h) {
			return fault.New(errdefs.ErrNotImplemented, "a sparse file in an image archive is not read, pack it without --sparse")
		}
		t.files[name] = span{offset, h.Size}
		delete(t.links, name)
	case tar.TypeSymlink:
		t.links[name] = path.Join(path.Dir(name), h.Linkname) //nolint:gosec // a key of t.files, not a path of the host
		delete(t.files, name)
	case tar.TypeLink:
		t.links[name] = path.Clean(strings.TrimPrefix(h.Linkname, "/"))
		delete(t.files, name)
	}
	return nil
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	at := path.Clean(strings.TrimPrefix(name, "/"))
	for range maxLinks {
		if s, ok := t.files[at]; ok {
			return io.NopCloser(io.NewSectionReader(t.r, s.offset, s.size)), s.size, nil
		}
		next, ok := t.links[at]
		if !ok {
			return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		at = next
	}
	return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("too many links: %w", fs.ErrInvalid)}
}

func (t *tarFiles) close() error { return t.closeFn() }
