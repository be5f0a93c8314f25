// Package parts reads the parts of a layer's tar besides the data of its files: a file of tar-split, compressed by gzip.
package parts

import (
	"errors"
	"io"
	"io/fs"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inflate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// maxBytes is the most bytes of a layer's parts.
const maxBytes = 1 << 36

type reader struct {
	file io.Closer
	name string
	data io.Reader
	left int64 // bytes that may come
}

// Open opens a file of a root, and reads the header of its compression. Returns errdefs.ErrNotFound if there is none.
// Reading it returns errdefs.ErrDataLoss where the data are damaged, and errdefs.ErrResourceExhausted where there are far
// too many.
func Open(root *rootdir.Dir, name string) (io.ReadCloser, error) {
	file, err := root.OpenFile(name)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	data, err := inflate.NewReader(file)
	if err != nil {
		return nil, errors.Join(damaged(name, err), file.Close())
	}
	return &reader{file: file, name: name, data: data, left: maxBytes}, nil
}

func (r *reader) Read(buf []byte) (int, error) {
	n, err := r.data.Read(buf)
	if r.left -= int64(n); r.left < 0 {
		return 0, fault.New(errdefs.ErrResourceExhausted, "%s has more than %d bytes", r.name, int64(maxBytes))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(r.name, err)
	}
	return n, err
}

func (r *reader) Close() error { return r.file.Close() }

// damaged is the error of parts that cannot be decompressed. An error of the file itself stays as it is.
func damaged(name string, err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return err
	}
	return fault.New(errdefs.ErrDataLoss, "%s is damaged: %w", name, err)
}
