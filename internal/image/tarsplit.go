package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/stream"
)

// A layer tar is more than the tree that it makes: headers can be written in many ways, and the digest of an image
// covers them. So the parts of a tar besides the bytes of the tree's files are stored, as Docker does with tar-split.
// By them an imported image is exported with the same digests. They are stored as JSON, in zstd. A layer without them
// is exported from its tree.

// splitFile is where the rest of the layer's tar is kept.
func (s *Store) splitFile(layer string) string {
	return s.path(tarSplitDir, layer+splitSuffix)
}

// splitter stores a tar that is written to it, without the bytes of files. Writing never fails: if the tar cannot be
// taken apart, keep says so.
type splitter struct {
	pipe  *io.PipeWriter
	file  *atomicfile.File
	done  chan struct{}
	shape tarShape // once it is done
	err   error
}

// newSplitter makes a splitter that keeps also the data of the entries that are lost.
func newSplitter(dir string, lost map[int]bool) (*splitter, error) {
	f, err := atomicfile.Create(dir, temporaryPrefix)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	s := &splitter{pipe: pw, file: f, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.shape, s.err = splitCompressed(pr, f, lost)
		_, _ = io.Copy(io.Discard, pr) // the writer goes on; its errors are its own
	}()
	return s, nil
}

func splitCompressed(tar io.Reader, f io.Writer, lost map[int]bool) (tarShape, error) {
	compressed, err := layertar.Compress(f, layertar.Zstd, 0)
	if err != nil {
		return tarShape{}, err
	}
	buffered := bufio.NewWriterSize(compressed, 1<<16)
	shape, err := splitTar(tar, buffered, lost)
	return shape, errors.Join(err, buffered.Flush(), compressed.Close())
}

// Write implements io.Writer.
func (s *splitter) Write(p []byte) (int, error) { return s.pipe.Write(p) }

// finish says that the tar has been written, and returns its shape.
func (s *splitter) finish() (tarShape, error) {
	_ = s.pipe.Close() // never fails
	<-s.done
	return s.shape, s.err
}

// keep stores the parts at path, durably. After an error there is nothing at path, and no more.
func (s *splitter) keep(path string) error {
	if _, err := s.finish(); err != nil {
		return errors.Join(err, s.file.Discard())
	}
	return s.file.Commit(path)
}

// discard forgets the parts.
func (s *splitter) discard() {
	_ = s.pipe.CloseWithError(errors.New("discarded")) // never fails
	<-s.done
	_ = s.file.Discard() // else the next import does
}

// withParts opens the parts in a file, and the layer's files.
func (s *Store) withParts(ctx context.Context, path, layer string, do func(files storage.FileGetter, parts io.Reader) error) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	parts, _, err := layertar.Decompress(f)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	defer func() { err = errors.Join(err, parts.Close()) }()
	files, err := s.driver.WithContext(ctx).DiffGetter(layer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	return do(files, bufio.NewReaderSize(stream.ReadUntil(ctx, parts), 1<<16))
}

// reassemble writes the tar that a layer was imported from. Returns fs.ErrNotExist if it was not stored. The caller
// checks the output: the layer may have been changed.
func (s *Store) reassemble(ctx context.Context, w io.Writer, layer string) error {
	return s.withParts(ctx, s.splitFile(layer), layer, func(files storage.FileGetter, parts io.Reader) error {
		buffered := bufio.NewWriterSize(stream.WriteUntil(ctx, w), 1<<16)
		return errors.Join(joinTar(files, parts, buffered), buffered.Flush())
	})
}
