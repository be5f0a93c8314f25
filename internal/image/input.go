package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/closers"
	"github.com/cowshed/cowshed/internal/stream"
)

// peekSize is the length of a tar's beginning by which its kind is recognised.
const peekSize = 64 << 10

// input is a tar that is read once: a file or stream, compressed or not.
type input struct {
	file *os.File // nil: a stream
	raw  *bufio.Reader
	size int64 // bytes of the file; negative: not known

	plain   *bufio.Reader // decompressed; nil before it is asked for
	format  layertar.Format
	closers closers.Closers
}

func openInput(path string, stdin io.Reader) (*input, error) {
	if path == Stdio {
		if stdin == nil {
			stdin = os.Stdin
		}
		return &input{raw: bufio.NewReaderSize(stdin, peekSize), size: -1}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	in := &input{raw: bufio.NewReaderSize(f, peekSize), size: -1, closers: closers.Closers{f.Close}}
	if info.Mode().IsRegular() {
		in.file, in.size = f, info.Size()
	}
	return in, nil
}

func (in *input) close() error { return in.closers.Close() }

// decompress makes in.plain readable.
func (in *input) decompress() error {
	if in.plain != nil {
		return nil
	}
	r, format, err := layertar.Decompress(in.raw)
	if err != nil {
		return err
	}
	in.closers.Add(r.Close)
	in.plain, in.format = bufio.NewReaderSize(r, peekSize), format
	return nil
}

// imageMarks are the files that describe an image. Every archive of an image has one of them.
var imageMarks = []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile, dockerManifest}

// imageEntry matches the names that the first entry of an image's archive can have: those of OCI layouts,
// of docker save, and of go-containerregistry. No root filesystem has them.
var imageEntry = regexp.MustCompile(`^(blobs(/.*)?|oci-layout|index\.json|manifest\.json|repositories|(sha256:)?[0-9a-f]{64}(\.json|\.tar|\.tar\.gz|/.*)?)$`)

// holdsImage reports whether the tar is the archive of an image rather than a root filesystem, by its first entry or
// one of imageMarks. It looks only into the beginning of a stream or of compressed data.
func (in *input) holdsImage() (bool, error) {
	if err := in.decompress(); err != nil {
		return false, err
	}
	head, err := in.plain.Peek(peekSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	var rest io.Reader = bytes.NewReader(head)
	if in.file != nil && in.format == layertar.Plain {
		rest = io.NewSectionReader(in.file, 0, in.size)
	}
	tr := tar.NewReader(rest)
	for first := true; ; {
		h, err := tr.Next()
		if err != nil && first {
			return false, fmt.Errorf("not a tar: %w: %w", err, ErrMalformed)
		}
		if err != nil { // the end, or an error that the tar's reader will report
			return false, nil //nolint:nilerr // see above
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if first && name != "." && imageEntry.MatchString(name) || slices.Contains(imageMarks, name) {
			return true, nil
		}
		first = first && name == "."
	}
}

// index makes the files in the tar readable at random. Unless the tar is a plain file, it is first copied
// into a temporary one.
func (in *input) index(ctx context.Context) (*tarFiles, error) {
	if err := in.decompress(); err != nil {
		return nil, err
	}
	if in.file != nil && in.format == layertar.Plain {
		if _, err := in.file.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return indexTar(in.file, in.file, func() error { return nil })
	}

	spool, remove, err := newSpool()
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(spool, stream.ReadUntil(ctx, in.plain))
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	t, err := indexTar(spool, spool, remove)
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	return t, nil
}

var errReadOnce = errors.New("a stream is read once only: write it to a file first")

// opener returns a function that reads the tar from its start, compressed or not.
func (in *input) opener() func(context.Context) (io.ReadCloser, error) {
	opened := false
	return func(context.Context) (io.ReadCloser, error) {
		first := in.raw
		switch {
		case !opened && in.plain != nil: // it was looked into
			first = in.plain
		case opened && in.file == nil:
			return nil, errReadOnce
		case opened:
			if _, err := in.file.Seek(0, io.SeekStart); err != nil {
				return nil, err
			}
			in.raw.Reset(in.file)
		}
		opened = true
		return io.NopCloser(first), nil
	}
}
