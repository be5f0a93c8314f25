package snapshotter

import (
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

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/stream"
)

// Apply extracts a layer from the content store straight into the volume of an active snapshot. It returns the digest
// and size of the uncompressed layer. The extracted layer survives a power cut. Id mappings of the mount have no
// effect: a volume keeps the ids of the layer.
//
// The blob is read once: its digest is computed during extraction. If extraction fails, or the digest is another, the
// snapshot gets its former content back. If the backend cannot do that, the blob is first read once to check its
// digest. A later failure then leaves a part of the layer in the snapshot. The end of the process does so too. Such a
// snapshot cannot be committed.
//
// Returns errdefs.ErrFailedPrecondition if the blob does not have the digest and size of desc, or if the snapshot
// cannot be written to. Returns errdefs.ErrInvalidArgument if the layer is malformed.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	applied, err := d.apply(toStore(ctx), desc, mounts, opts)
	if err != nil {
		return ocispec.Descriptor{}, fault.Wrap("apply blob", desc.Digest.String(), typed(err))
	}
	return applied, nil
}

func (d *Differ) apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts []diff.ApplyOpt) (_ ocispec.Descriptor, err error) {
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
		err = fault.New(errdefs.ErrFailedPrecondition, "mounts are read-only")
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	blob, err := d.openBlob(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer blob.Close()
	f, err := d.snapshotter.fill(ctx, target.volume)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = f.end(ctx, err) }()
	if f.before == nil {
		if err := checkDigest(ctx, blob, desc); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	applied, err := d.extract(ctx, blob, desc, f, config.Progress)
	return applied, d.snapshotter.namingLimit(ctx, target.volume, err)
}

// openBlob opens a blob of the size that desc says.
func (d *Differ) openBlob(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fault.New(errdefs.ErrInvalidArgument, "digest: %w", err)
	}
	blob, err := d.store.ReaderAt(ctx, desc)
	if err == nil && blob.Size() != desc.Size {
		err = errors.Join(fault.New(errdefs.ErrFailedPrecondition, "blob has %d bytes and not %d", blob.Size(), desc.Size), blob.Close())
	}
	return blob, err
}

// checkDigest reads a blob for its digest alone.
func checkDigest(ctx context.Context, blob content.ReaderAt, desc ocispec.Descriptor) error {
	verifier := desc.Digest.Verifier()
	return verify(readWhole(ctx, blob, verifier), verifier)
}

// verify closes the reader of a whole blob after it has read the rest, all of which the verifier sees.
func verify(whole io.ReadCloser, verifier digest.Verifier) error {
	_, err := io.Copy(io.Discard, whole)
	if err := errors.Join(err, whole.Close()); err != nil {
		return fmt.Errorf("read blob: %w", err)
	}
	if !verifier.Verified() {
		return fault.New(errdefs.ErrFailedPrecondition, "blob has another digest")
	}
	return nil
}

// extract extracts a blob, and checks its digest beside.
func (d *Differ) extract(ctx context.Context, blob content.ReaderAt, desc ocispec.Descriptor, f *filling, progress func(int64)) (ocispec.Descriptor, error) {
	f.begun = true
	verifier := desc.Digest.Verifier()
	whole := readWhole(ctx, blob, verifier)
	compressed := io.Reader(whole)
	if progress != nil {
		progress(0)
		var read int64
		compressed = stream.CountReads(whole, func(n int64) { read += n; progress(read) })
	}
	applied, err := d.extractFrom(ctx, compressed, desc, f.volume)
	if err == nil {
		err = context.Cause(ctx) // the rest cannot be read and verified any more
	}
	if ctx.Err() != nil || errdefs.IsResourceExhausted(typed(err)) {
		return ocispec.Descriptor{}, errors.Join(err, whole.Close())
	}
	// A blob that is not the right one is no malformed layer.
	if err := verify(whole, verifier); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if progress != nil {
		progress(desc.Size)
	}
	return applied, nil
}

// extractFrom extracts a layer and describes it without its compression.
func (d *Differ) extractFrom(ctx context.Context, compressed io.Reader, desc ocispec.Descriptor, volume string) (_ ocispec.Descriptor, err error) {
	plain, format, err := decompress(compressed, desc.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	applied := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}
	if format == layertar.Plain && desc.Digest.Algorithm() == digest.Canonical {
		// The blob is the layer, and its digest is computed already.
		applied.Size, applied.Digest = desc.Size, desc.Digest
		return applied, d.applyAll(ctx, volume, plain)
	}
	var size int64
	counter := stream.CountWrites(io.Discard, func(n int64) { size += n })
	digester := digest.Canonical.Digester()
	layer := layertar.ReadAhead(plain, plainPiece, counter, digester.Hash())
	err = errors.Join(d.applyAll(ctx, volume, layer), layer.Close())
	applied.Size, applied.Digest = size, digester.Digest()
	return applied, err
}

// applyAll applies a layer and reads the bytes after the end of the tar, which belong to the layer and its digest.
func (d *Differ) applyAll(ctx context.Context, volume string, layer io.Reader) error {
	s := d.snapshotter
	if _, err := cowcommon.Apply(ctx, s.backend, volume, layer, layertar.ApplyOptions{Logger: s.log}); err != nil {
		return fault.Wrap("apply to volume", volume, cowcommon.AsReadOnly(err))
	}
	if _, err := io.Copy(io.Discard, layer); err != nil {
		return fmt.Errorf("read to the end: %w", err)
	}
	return nil
}

// decompress returns the tar. A blob of a compressed media type is decompressed by the format of its first bytes.
func decompress(r io.Reader, mediaType string) (io.ReadCloser, layertar.Format, error) {
	if layerFormats[mediaType] == layertar.Plain {
		return io.NopCloser(r), layertar.Plain, nil
	}
	return layertar.Decompress(r)
}

const (
	// pieceSize is how many bytes of a blob are read or written at once: each time may be a request to the content store.
	pieceSize = 1 << 20
	// plainPiece is how much of a decompressed layer is digested at once.
	plainPiece = 256 << 10
)

// readWhole reads a blob from its beginning, ahead of its use, and writes it to tee; content.NewReader goes on where
// another reader has stopped. The caller closes this reader before the blob.
func readWhole(ctx context.Context, blob content.ReaderAt, tee io.Writer) io.ReadCloser {
	return layertar.ReadAhead(stream.ReadUntil(ctx, io.NewSectionReader(blob, 0, blob.Size())), pieceSize, tee)
}
