package snapshotter

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// Compare writes the changes of upper since lower as a layer to the content store. It shows both at one moment,
// whatever is written to them meanwhile. lower without any mounts is an empty tree.
//
// Compare makes the media types of containerd's own differ: the OCI layer, compressed with gzip (the default), with
// zstd, or not at all. With a compressor of the caller it makes any media type. If config names a reference, Compare
// reuses its upload.
func (d *Differ) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	desc, err := d.compare(toStore(ctx), lower, upper, opts)
	if err != nil {
		return ocispec.Descriptor{}, fault.Wrap("diff snapshots", "", typed(err))
	}
	return desc, nil
}

func (d *Differ) compare(ctx context.Context, lower, upper []mount.Mount, opts []diff.Opt) (_ ocispec.Descriptor, err error) {
	config, err := compareConfig(ctx, opts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	base, err := d.snapshotter.resolve(ctx, lower)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("lower: %w", err)
	}
	top, err := d.snapshotter.resolve(ctx, upper)
	if err == nil && top.volume == "" {
		err = fault.New(errdefs.ErrNotImplemented, "no snapshot that could have changed")
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("upper: %w", err)
	}
	comparison, err := d.snapshotter.compare(ctx, top.volume, base.volume)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, comparison.Close()) }()
	return d.writeBlob(ctx, comparison, config)
}

// compareConfig reads the options. Returns errdefs.ErrNotImplemented if the media type is unknown.
func compareConfig(ctx context.Context, opts []diff.Opt) (diff.Config, error) {
	var config diff.Config
	for _, opt := range opts {
		if err := opt(&config); err != nil {
			return diff.Config{}, err
		}
	}
	if config.SourceDateEpoch == nil {
		config.SourceDateEpoch = epoch.FromContext(ctx)
	}
	if config.Compressor != nil {
		if config.MediaType == "" {
			return diff.Config{}, fault.New(errdefs.ErrInvalidArgument, "a compressor needs the media type of its output")
		}
		return config, nil
	}
	switch config.MediaType {
	case "":
		config.MediaType = ocispec.MediaTypeImageLayerGzip
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
	default:
		return diff.Config{}, unknownMediaType(config.MediaType)
	}
	config.Compressor = func(w io.Writer, mediaType string) (io.WriteCloser, error) {
		return layertar.Compress(w, layerFormats[mediaType], 0)
	}
	return config, nil
}

// writeBlob writes a comparison to the content store. After an error it gives up the upload, unless the client
// has named it: then it is the client's, and can be tried again.
func (d *Differ) writeBlob(ctx context.Context, c *cowcommon.Comparison, config diff.Config) (_ ocispec.Descriptor, err error) {
	ref, own := config.Reference, config.Reference == ""
	if own {
		ref = "cowshed-diff-" + rand.Text()
	}
	w, err := d.store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: config.MediaType}))
	if err != nil {
		err = fmt.Errorf("open upload: %w", err)
		if own && ctx.Err() != nil { // it may have been opened all the same
			err = errors.Join(err, abort(ctx, d.store, ref))
		}
		return ocispec.Descriptor{}, err
	}
	committed := false
	defer func() {
		err = errors.Join(err, w.Close())
		if own && !committed {
			err = errors.Join(err, abort(ctx, d.store, ref))
		}
	}()
	if !own {
		if err := w.Truncate(0); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("start upload anew: %w", err)
		}
	}
	diffID, err := writeLayer(ctx, w, c, config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	blobLabels := config.Labels
	if config.MediaType != ocispec.MediaTypeImageLayer {
		if blobLabels = maps.Clone(blobLabels); blobLabels == nil {
			blobLabels = make(map[string]string, 1)
		}
		blobLabels[labels.LabelUncompressed] = diffID.String()
	}
	blob := w.Digest()
	if err := w.Commit(ctx, 0, blob, content.WithLabels(blobLabels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, fmt.Errorf("commit upload: %w", err)
	}
	committed = true
	info, err := d.complete(ctx, blob, blobLabels[labels.LabelUncompressed])
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: config.MediaType, Digest: info.Digest, Size: info.Size}, nil
}

// abort gives up an upload, also when the request has been cancelled.
func abort(ctx context.Context, store content.Store, ref string) error {
	ctx, cancel := toGiveUp(ctx)
	defer cancel()
	if err := store.Abort(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("give up upload: %w", err)
	}
	return nil
}

// toGiveUp gives the requests that end an upload a time of their own: that of the client may be over.
func toGiveUp(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), giveUpAfter)
}

const giveUpAfter = 10 * time.Second

// writeLayer writes the compressed tar, and returns the digest of the uncompressed one.
func writeLayer(ctx context.Context, w io.Writer, c *cowcommon.Comparison, config diff.Config) (_ digest.Digest, err error) {
	pieces := bufio.NewWriterSize(w, pieceSize)
	compressed, err := config.Compressor(pieces, config.MediaType)
	if err != nil {
		return "", err
	}
	digester := digest.Canonical.Digester()
	err = c.WriteTar(ctx, io.MultiWriter(compressed, digester.Hash()), config.SourceDateEpoch)
	if err := errors.Join(err, compressed.Close()); err != nil {
		return "", err
	}
	return digester.Digest(), pieces.Flush()
}

// complete describes a blob, and gives it the label of its uncompressed digest if it was there before without.
func (d *Differ) complete(ctx context.Context, blob digest.Digest, uncompressed string) (content.Info, error) {
	info, err := d.store.Info(ctx, blob)
	if err != nil || uncompressed == "" || info.Labels[labels.LabelUncompressed] != "" {
		return info, err
	}
	if info.Labels = maps.Clone(info.Labels); info.Labels == nil {
		info.Labels = make(map[string]string, 1)
	}
	info.Labels[labels.LabelUncompressed] = uncompressed
	return d.store.Update(ctx, info, "labels."+labels.LabelUncompressed)
}
