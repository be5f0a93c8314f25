package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// Takeover brings layers and images of another program into a store. While it is open, nobody removes images, or the
// remains of imports.
type Takeover struct {
	store *Store
	lock  *flock.Lock
}

// TakeOver opens a Takeover, which the caller closes. If nobody else works on the store, it removes the remains of
// imports and takeovers that were cut off.
func (s *Store) TakeOver(ctx context.Context) (*Takeover, error) {
	l, alone, err := s.lockShared(ctx)
	if err != nil {
		return nil, err
	}
	if alone {
		if err := errors.Join(s.sweep(ctx), l.Shared(ctx)); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return &Takeover{s, l}, nil
}

// Close ends it.
func (t *Takeover) Close() error { return t.lock.Close() }

// Partial makes a name for a volume that is to become the layer. The next import removes the volume if it still has
// that name then.
func (t *Takeover) Partial(layer string) string {
	if !IsLayerName(layer) {
		layer = "rootfs"
	}
	return partialName(layer)
}

// KeepParts keeps the parts of a layer's tar, in the uncompressed JSON of tar-split. It is called before the layer has
// its name.
func (t *Takeover) KeepParts(layer string, parts io.Reader) error {
	if !IsLayerName(layer) {
		return fault.New(errdefs.ErrInvalidArgument, "layer %q cannot have parts of a tar", layer)
	}
	f, err := atomicfile.Create(t.store.path(tarSplitDir), temporaryPrefix)
	if err != nil {
		return err
	}
	compressed, err := layertar.Compress(f, layertar.Zstd, 0)
	if err == nil {
		_, err = io.Copy(compressed, ShortLines(parts))
		err = errors.Join(err, compressed.Close())
	}
	if err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit(t.store.splitFile(layer))
}

// DropParts forgets the parts of a tar whose layer has not been made.
func (t *Takeover) DropParts(ctx context.Context, layer string) error {
	exists, err := t.store.layerExists(ctx, layer)
	if err != nil || exists {
		return err
	}
	return removeIfThere(t.store.splitFile(layer))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// maxPart bounds the memory for a part that was not made here. It is enough for those that are made here.
const maxPart = 2 * maxKept

// ShortLines reads parts of a tar that were not made here, in the JSON of tar-split. Returns errdefs.ErrDataLoss for a
// line that is longer than any that is made here.
func ShortLines(parts io.Reader) io.Reader { return &shortLines{r: parts} }

// shortLines is a reader whose lines are not longer than maxPart.
type shortLines struct {
	r    io.Reader
	line int
}

// Read implements io.Reader.
func (s *shortLines) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if end := bytes.LastIndexByte(p[:n], '\n'); end >= 0 {
		s.line = n - end
	} else {
		s.line += n
	}
	if s.line > maxPart {
		return 0, fault.New(errdefs.ErrDataLoss, "a part of the layer's tar has more than %d bytes", maxPart)
	}
	return n, err
}

// WriteTar reassembles the tar of a layer from its parts and the files of a volume, which may be the layer itself. The
// caller checks its digest. Returns errdefs.ErrNotFound if the parts are not kept, and errdefs.ErrDataLoss if they or the
// files are others.
func (t *Takeover) WriteTar(ctx context.Context, w io.Writer, volume, layer string) error {
	if !t.hasParts(layer) {
		return fault.New(errdefs.ErrNotFound, "the parts of the tar of layer %s", layer)
	}
	return t.store.withParts(ctx, t.store.splitFile(layer), volume, func(files storage.FileGetter, parts io.Reader) error {
		return JoinParts(ctx, w, files, parts)
	})
}

// JoinParts reassembles a layer tar from its parts, in the uncompressed JSON of tar-split, and files. The caller checks its
// digest. Returns errdefs.ErrDataLoss if the parts or the files are others, and the error of w if it cannot be written.
func JoinParts(ctx context.Context, w io.Writer, files storage.FileGetter, parts io.Reader) error {
	out := &output{w: w}
	err := joinTar(files, stream.ReadUntil(ctx, ShortLines(parts)), out)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case out.err != nil:
		return out.err
	case err != nil:
		return fmt.Errorf("reassemble the layer's tar: %w", fault.As(errdefs.ErrDataLoss, err))
	}
	return nil
}

// output is a writer that keeps its error.
type output struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.err = err
	return n, err
}

func (t *Takeover) hasParts(layer string) bool {
	_, err := os.Stat(t.store.splitFile(layer))
	return err == nil
}

// Record records an image whose layers are there, as imported at that time, in whole seconds. If the image is recorded
// already, Record does nothing, and wrote is false.
//
// Returns errdefs.ErrNotFound if a layer is missing, errdefs.ErrAlreadyExists if another image has the name, and
// errdefs.ErrInvalidArgument if the name cannot be.
func (t *Takeover) Record(ctx context.Context, name, origin string, config []byte, imported time.Time) (wrote bool, err error) {
	if err := CheckName(name); err != nil {
		return false, err
	}
	parsed, err := parseConfig(config)
	if err != nil {
		return false, err
	}
	image := &Image{Name: name, Origin: origin, Imported: imported.UTC().Truncate(time.Second), Config: config, parsed: parsed}
	there, err := t.store.Get(name)
	switch {
	case err == nil && there.ID() == image.ID():
		return false, nil
	case err == nil:
		return false, fault.New(errdefs.ErrAlreadyExists, "another image has the name %s: its ID is %s", name, there.ID())
	case !errdefs.IsNotFound(err):
		return false, err
	}
	for _, layer := range image.Layers() {
		exists, err := t.store.layerExists(ctx, layer)
		if err != nil {
			return false, err
		}
		if !exists {
			return false, fault.New(errdefs.ErrNotFound, "layer %s of image %s", layer, name)
		}
	}
	err = t.store.save(image)
	return err == nil, err
}

// alone calls do while nobody else works on the store. Returns errdefs.ErrFailedPrecondition if somebody does.
func (t *Takeover) alone(ctx context.Context, do func() error) error {
	err := takeAlone(t.lock)
	if errors.Is(err, errLocked) {
		err = fault.New(errdefs.ErrFailedPrecondition, "another process is importing or exporting")
	}
	if err == nil {
		err = do()
	}
	return errors.Join(err, t.lock.Shared(context.WithoutCancel(ctx)))
}

// Forget removes the record of an image that Record has made with that time. Its layers stay. If the name is free, or has
// another record, Forget does nothing.
func (t *Takeover) Forget(ctx context.Context, name string, id digest.Digest, imported time.Time) error {
	return t.alone(ctx, func() error {
		there, err := t.store.Get(name)
		if errdefs.IsNotFound(err) || err == nil && (there.ID() != id || !there.Imported.Equal(imported)) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.Remove(t.store.path(recordsDir, recordFile(name))); err != nil {
			return err
		}
		return syncdir.Sync(t.store.path(recordsDir))
	})
}

// Remove removes a layer that no image has, with the parts of its tar. Removing an absent layer is not an error.
// Returns errdefs.ErrFailedPrecondition if an image has it, or if a layer was made from it.
func (t *Takeover) Remove(ctx context.Context, layer string) error {
	return t.alone(ctx, func() error {
		needed, err := t.store.needed(ctx, []string{layer}, "")
		if err != nil {
			return err
		}
		if by := needed[layer]; len(by) > 0 {
			return fault.New(errdefs.ErrFailedPrecondition, "it is needed by %s", by[0])
		}
		return t.store.removeLayer(ctx, layer)
	})
}

// FamiliarName is the shortest form of an image's name, as Docker lists it.
func FamiliarName(name string) string { return familiarName(name) }
