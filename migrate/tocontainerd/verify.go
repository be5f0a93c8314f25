package tocontainerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/fill"
)

// Verify implements migrate.Target.
func (t *Target) Verify(ctx context.Context, item migrate.Item, source migrate.Source) error {
	ctx = t.in(ctx)
	switch {
	case item.Image != nil:
		return t.verifyImage(ctx, item.Image)
	case item.Container != nil:
		return t.verifyContainer(ctx, item.Container)
	}
	if err := t.hasLayer(ctx, item.Layer); err != nil {
		return err
	}
	needs := t.needsOf(item.Layer.ID)
	if item.Layer.Kind == migrate.ImageLayer && !needs.snapshot {
		return nil
	}
	// If this process has adopted the source's volume, or compared the snapshot with the layer's tar, it does not compare
	// them with each other.
	if !t.equal[item.Layer.ID] {
		if err := t.verifyTree(ctx, item.Layer, source); err != nil {
			return err
		}
	}
	if item.Layer.Kind == migrate.ImageLayer && needs.blob {
		return t.verifyBlob(ctx, item.Layer.DiffID)
	}
	return nil
}

// verifyTree compares the tree of a layer with its source.
func (t *Target) verifyTree(ctx context.Context, layer *migrate.Layer, source migrate.Source) (err error) {
	info, err := t.find(ctx, layer)
	if err != nil {
		return err
	}
	want, err := source.Open(ctx, layer.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, want.Close()) }()
	compare := func(base *os.File) error {
		return t.withSnapshot(ctx, info, func(got *os.File) error {
			return fill.VerifyDir(ctx, got, base, want)
		})
	}
	if want.Form == migrate.Whole || info.Parent == "" {
		return compare(nil)
	}
	return t.withView(ctx, info.Parent, compare)
}

// withSnapshot calls do with the tree of a snapshot. A view of an active one is the snapshot itself.
func (t *Target) withSnapshot(ctx context.Context, info snapshots.Info, do func(dir *os.File) error) error {
	if info.Kind == snapshots.KindCommitted {
		return t.withView(ctx, info.Name, do)
	}
	mounts, err := t.snapshots.Mounts(ctx, info.Name)
	if err != nil {
		return err
	}
	return withTree(readOnly(mounts), do)
}

// readOnly are the same mounts, through which nothing can be changed.
func readOnly(mounts []mount.Mount) []mount.Mount {
	list := make([]mount.Mount, 0, len(mounts))
	for _, m := range mounts {
		m.Options = append(slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "rw" }), "ro")
		list = append(list, m)
	}
	return list
}

// verifyBlob reads the blob of a layer. Returns errdefs.ErrDataLoss if it is not the layer's tar.
func (t *Target) verifyBlob(ctx context.Context, diffID digest.Digest) (err error) {
	desc, err := t.layerBlob(ctx, diffID)
	if err != nil {
		return err
	}
	blob, err := t.content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	tar, _, err := layertar.Decompress(stream.ReadUntil(ctx, content.NewReader(blob)))
	if err != nil {
		return fault.New(errdefs.ErrDataLoss, "blob %s: %w", desc.Digest, err)
	}
	verifier := diffID.Verifier()
	_, err = io.Copy(verifier, tar)
	if err := errors.Join(err, tar.Close()); err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	if !verifier.Verified() {
		return fault.New(errdefs.ErrDataLoss, "blob %s is not the tar of the layer", desc.Digest)
	}
	return nil
}
