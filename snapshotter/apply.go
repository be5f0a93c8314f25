package snapshotter

import (
	"bufio"
	"context"
	_ "crypto/sha256" // digests of blobs
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// Apply extracts a layer from the content store straight into the volume of an active snapshot, and returns the
// digest and size of the uncompressed layer. What it wrote survives a power cut. Id mappings of the mount have no
// effect: a volume keeps the ids of the layer.
//
// errdefs.ErrFailedPrecondition: the blob has not the digest or size that desc says, or the snapshot cannot be
// written to; nothing was changed. errdefs.ErrInvalidArgument: the layer is malformed; like every other error
// that comes while it is being extracted it leaves a part of the layer in the snapshot.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	applied, err := d.apply(toStore(ctx), desc, mounts, opts)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("snapshotter: apply %s: %w", desc.Digest, typed(err))
	}
	return applied, nil
}

func (d *Differ) apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts []diff.ApplyOpt) (ocispec.Descriptor, error) {
	var config diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, desc, &config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if _, ok := layerFormats[desc.MediaType]; !ok {
		return ocispec.Descriptor{}, unknownMediaType(desc.MediaType)
	}
	target, err := d.snapshotter.resolve(ctx, mounts)
	if err == nil && target.readOnly {
		err = fmt.Errorf("mounts are read-only: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	blob, err := d.store.ReaderAt(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer blob.Close()
	// Not while it is being extracted: then it would be too late to change nothing.
	if err := verify(ctx, blob, desc); err != nil {
		return ocispec.Descriptor{}, err
	}
	applied, err := d.extract(ctx, blob, desc.MediaType, target.volume, config.Progress)
	return applied, d.snapshotter.namingLimit(ctx, target.volume, err)
}

// verify reads a blob and checks its size and digest.
func verify(ctx context.Context, blob content.ReaderAt, desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if blob.Size() != desc.Size {
		return fmt.Errorf("blob has %d bytes and not %d: %w", blob.Size(), desc.Size, errdefs.ErrFailedPrecondition)
	}
	verifier := desc.Digest.Verifier()
	whole := wholeOf(ctx, blob)
	n, err := io.Copy(verifier, whole)
	if err := errors.Join(err, whole.Close()); err != nil {
		return fmt.Errorf("read blob: %w", err)
	}
	if n != desc.Size || !verifier.Verified() {
		return fmt.Errorf("blob has another digest: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (d *Differ) extract(ctx context.Context, blob content.ReaderAt, mediaType, volume string, progress func(int64)) (_ ocispec.Descriptor, err error) {
	whole := wholeOf(ctx, blob)
	defer func() { err = errors.Join(err, whole.Close()) }()
	compressed := io.Reader(whole)
	if progress != nil {
		progress(0)
		compressed = &progressReader{r: compressed, report: progress}
	}
	plain, err := decompress(compressed, mediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var size counter
	digester := digest.Canonical.Digester()
	layer := layertar.ReadAhead(plain, &size, digester.Hash())
	defer func() { err = errors.Join(err, layer.Close(), plain.Close()) }()

	if _, err := d.driver.Apply(ctx, volume, layer); err != nil {
		return ocispec.Descriptor{}, err
	}
	// What comes after the end of the tar belongs to the layer too, and to its digest.
	if _, err := io.Copy(io.Discard, layer); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read to the end: %w", err)
	}
	if progress != nil {
		progress(blob.Size())
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: int64(size), Digest: digester.Digest()}, nil
}

// decompress returns the tar. What is said to be compressed is decompressed as it is, in whichever format.
func decompress(r io.Reader, mediaType string) (io.ReadCloser, error) {
	if layerFormats[mediaType] == layertar.Plain {
		return io.NopCloser(r), nil
	}
	plain, _, err := layertar.Decompress(r)
	return plain, err
}

// pieceSize is how many bytes of a blob are read or written at once: each time is a request to the content store.
const pieceSize = 1 << 20

// wholeOf reads a blob from its beginning, ahead of its use; content.NewReader goes on where another reader has
// stopped. Whoever closes the blob closes this reader first.
func wholeOf(ctx context.Context, blob content.ReaderAt) io.ReadCloser {
	whole := &contextReader{ctx, io.NewSectionReader(blob, 0, blob.Size())}
	return layertar.ReadAhead(bufio.NewReaderSize(whole, pieceSize))
}

// contextReader stops reading when the context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// progressReader reports how much has been read.
type progressReader struct {
	r      io.Reader
	report func(int64)
	read   int64
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.read += int64(n)
		p.report(p.read)
	}
	return n, err
}

// counter counts the bytes that are written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
