package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// A layer tar is more than the tree that it makes: headers can be written in many ways, and the digest of
// an image covers them. So what a tar has besides the bytes of files is kept (tar-split, as Docker does),
// and an image that was imported is exported with the same digests. It is kept as JSON, in zstd. A layer
// without it, and one whose tar cannot be taken apart and put together again because it has a name twice,
// is exported from its tree.

// maxSplitEntries bounds the memory that taking a tar apart needs, since names seen are remembered.
const maxSplitEntries = 4_000_000

var errTooManyEntries = errors.New("too many entries")

// splitFile is where the rest of the layer's tar is kept.
func (s *Store) splitFile(layer string) string {
	return s.path(tarSplitDir, layer+splitSuffix)
}

// splitter keeps what is written to it, a tar, without the bytes of files. Writing never fails: if the
// tar cannot be taken apart, keep says so.
type splitter struct {
	pipe *io.PipeWriter
	file *os.File
	done chan error
}

func newSplitter(dir string) (*splitter, error) {
	f, err := os.CreateTemp(dir, temporaryPrefix)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	s := &splitter{pipe: pw, file: f, done: make(chan error, 1)}
	go func() {
		err := split(pr, f)
		_, _ = io.Copy(io.Discard, pr) // the writer goes on; its errors are its own
		s.done <- err
	}()
	return s, nil
}

func split(tar io.Reader, f io.Writer) error {
	compressed, err := layertar.Compress(f, layertar.Zstd, 0)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(compressed, 1<<16)
	rest, done, err := asm.NewInputTarStreamWithDone(tar, &boundedPacker{Packer: storage.NewJSONPacker(buffered)}, nil)
	if err != nil {
		return errors.Join(err, compressed.Close())
	}
	_, _ = io.Copy(io.Discard, rest) // its error is the one that done tells
	err = errors.Join(<-done, rest.Close())
	return errors.Join(err, buffered.Flush(), compressed.Close())
}

// Write implements io.Writer.
func (s *splitter) Write(p []byte) (int, error) { return s.pipe.Write(p) }

// keep stores what was written at path, durably. An error means that there is nothing at path, and no more.
func (s *splitter) keep(path string) error {
	err := errors.Join(s.pipe.Close(), <-s.done)
	return commitFile(s.file, path, err)
}

// discard forgets what was written.
func (s *splitter) discard() {
	_ = s.pipe.CloseWithError(errors.New("discarded")) // never fails
	<-s.done                                           //nolint:errcheck // nothing is kept
	_ = s.file.Close()                                 // its content is of no use
	_ = os.Remove(s.file.Name())
}

type boundedPacker struct {
	storage.Packer
	n int
}

// AddEntry implements storage.Packer.
func (b *boundedPacker) AddEntry(e storage.Entry) (int, error) {
	if b.n++; b.n > maxSplitEntries {
		return 0, errTooManyEntries
	}
	return b.Packer.AddEntry(e)
}

// reassemble writes the tar that a layer was imported from. fs.ErrNotExist: it was not kept. What it
// writes has to be checked: the layer may have been changed.
func (s *Store) reassemble(ctx context.Context, w io.Writer, layer string) (err error) {
	f, err := os.Open(s.splitFile(layer))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rest, _, err := layertar.Decompress(f)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(f.Name()), err)
	}
	defer func() { err = errors.Join(err, rest.Close()) }()
	files, err := s.driver.WithContext(ctx).DiffGetter(layer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()

	buffered := bufio.NewWriterSize(&contextWriter{ctx, w}, 1<<16)
	if err := asm.WriteOutputTarStream(files, storage.NewJSONUnpacker(bufio.NewReaderSize(rest, 1<<16)), buffered); err != nil {
		return err
	}
	return buffered.Flush()
}

// contextWriter fails once the context is done.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

// Write implements io.Writer.
func (c *contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}
