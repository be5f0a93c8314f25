package main

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// The floor of an operation is its part that is the same whatever makes the snapshots. containerd imports and fetches the content of
// images, keeps new layers, removes records and collects garbage. Somebody computes digests, and compresses or decompresses.

func (t *turn) floorLoad(format layertar.Format) error {
	return t.unpack(of(opLoad, format), func(ctx context.Context) (client.Image, error) {
		return t.readThrough(ctx)(t.store.ImportPacked(ctx, t.image.archives[format]))
	})
}

func (t *turn) floorPull(format layertar.Format) error {
	return t.unpack(of(opPull, format), func(ctx context.Context) (client.Image, error) {
		return t.readThrough(ctx)(t.store.FetchImage(ctx, t.image.name(t.registry, format)))
	})
}

// readThrough returns a function that reads an image's layers without their compression, and computes their digests.
func (t *turn) readThrough(ctx context.Context) func(client.Image, error) (client.Image, error) {
	return func(img client.Image, err error) (client.Image, error) {
		if err != nil {
			return nil, err
		}
		manifest, err := images.Manifest(ctx, t.store.ContentStore(), img.Target(), img.Platform())
		if err != nil {
			return nil, err
		}
		for _, layer := range manifest.Layers {
			if err := t.readLayer(ctx, layer); err != nil {
				return nil, fmt.Errorf("read layer %s: %w", layer.Digest, err)
			}
		}
		return img, nil
	}
}

func (t *turn) readLayer(ctx context.Context, layer ocispec.Descriptor) error {
	const piece = 1 << 20
	blob, err := t.store.ContentStore().ReaderAt(ctx, layer)
	if err != nil {
		return err
	}
	defer blob.Close()
	packed := layertar.ReadAhead(io.NewSectionReader(blob, 0, blob.Size()), piece, sha256.New())
	defer packed.Close()
	plain, format, err := layertar.Decompress(packed)
	if err != nil {
		return err
	}
	defer plain.Close()
	if format == layertar.Plain { // it has one digest
		_, err = io.Copy(io.Discard, plain)
		return err
	}
	_, err = io.Copy(sha256.New(), plain)
	return err
}

func (t *turn) floorLive() (err error) {
	ctx := t.store.Context(t.ctx)
	img, err := t.store.ImportPacked(ctx, t.image.archives[t.image.formats[0]])
	if err != nil {
		return err
	}
	for _, op := range []operation{opContainerDiff, opCommit} {
		if err := t.floorLayer(ctx, op); err != nil {
			return err
		}
	}
	record := containers.Container{ID: "record", Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}}
	if _, err := t.store.ContainerService().Create(ctx, record); err != nil {
		return err
	}
	if err := t.timed(ctx, opContainerGone, func(ctx context.Context) error {
		if err := t.store.RemoveContainer(ctx, record.ID); err != nil {
			return err
		}
		return t.collect(ctx, 0)
	}); err != nil {
		return err
	}
	return t.delete(ctx, img, 0)
}

// floorLayer keeps a layer of the changes of a container. A commit reads that back, too.
func (t *turn) floorLayer(ctx context.Context, op operation) (err error) {
	ctx, done, err := t.store.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx)), t.store.CollectGarbage(ctx)) }()
	return t.timed(ctx, op, func(ctx context.Context) error {
		layer, err := t.writeChanges(ctx)
		if err != nil || op != opCommit {
			return err
		}
		return t.readLayer(ctx, layer)
	})
}

// writeChanges compresses a layer with the changes of a container into the content store, by the compressor of Cowshed's differ.
func (t *turn) writeChanges(ctx context.Context) (layer ocispec.Descriptor, err error) {
	changes, err := os.Open(t.image.changes)
	if err != nil {
		return layer, err
	}
	defer changes.Close()
	layer.MediaType = ocispec.MediaTypeImageLayerGzip
	w, err := content.OpenWriter(ctx, t.store.ContentStore(), content.WithRef("floor-"+rand.Text()), content.WithDescriptor(layer))
	if err != nil {
		return layer, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	compressed, err := layertar.Compress(w, layertar.Gzip, 0)
	if err != nil {
		return layer, err
	}
	_, err = io.Copy(io.MultiWriter(compressed, sha256.New()), changes)
	if err := errors.Join(err, compressed.Close()); err != nil {
		return layer, err
	}
	layer.Digest = w.Digest()
	if err := w.Commit(ctx, 0, layer.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return layer, err
	}
	info, err := t.store.ContentStore().Info(ctx, layer.Digest)
	layer.Size = info.Size
	return layer, err
}

// writeChangesTar writes the files that containers change as a layer.
func writeChangesTar(path string, data map[string][]byte, names []string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for _, name := range names {
		if err := (layoutWriter{w}).add(name, data[name]); err != nil {
			return err
		}
	}
	return w.Close()
}
