package tocontainerd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	containerdlabels "github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/fill"
	"github.com/cowshed/cowshed/migrate/internal/trees"
)

const uncompressedLabel = containerdlabels.LabelUncompressed

// How blobs of layers are compressed.
const (
	format         = layertar.Zstd
	layerMediaType = ocispec.MediaTypeImageLayerZstd
)

// layerBlob finds the blob of a layer, in the format that the Target writes. Returns errdefs.ErrNotFound if there is none.
func (t *Target) layerBlob(ctx context.Context, diffID digest.Digest) (ocispec.Descriptor, error) {
	if err := diffID.Validate(); err != nil {
		return ocispec.Descriptor{}, fault.New(errdefs.ErrInvalidArgument, "diff ID %q: %w", diffID, err)
	}
	found, err := t.findBlob(ctx, layersOf, diffID)
	if err == nil && found.Digest == "" {
		err = fault.New(errdefs.ErrNotFound, "there is no %s blob of layer %s", format, diffID)
	}
	return found, err
}

// tar makes the tar of a layer of an image from the layer's snapshot, and compares both. It makes the layer's blob of the
// tar. Returns errdefs.ErrDataLoss if it is another tar, or the snapshot has anything that is not in it. For other
// layers tar does nothing.
func (m making) tar(ctx context.Context, snapshot snapshots.Info) error {
	if m.layer.Kind != migrate.ImageLayer {
		return nil
	}
	makes := m.needsOf(m.layer.ID).blob
	if makes {
		there, err := m.layerBlob(ctx, m.layer.DiffID)
		if err == nil {
			makes, err = false, m.hold(ctx, m.lease, "content", there.Digest.String())
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return m.withSnapshot(ctx, snapshot, func(dir *os.File) error {
		return m.withBelow(ctx, func(base *os.File) error { return m.tarOf(ctx, dir, base, makes) })
	})
}

// withBelow calls do with the tree of the snapshot below, nil for none.
func (m making) withBelow(ctx context.Context, do func(base *os.File) error) error {
	if m.parent == "" {
		return do(nil)
	}
	return m.withView(ctx, m.parent, do)
}

// tarOf compares a tree with the layer's tar. If makes is true, it makes the blob.
func (m making) tarOf(ctx context.Context, dir, base *os.File, makes bool) error {
	verified := func(w io.Writer) error {
		return fill.VerifyDirTar(ctx, dir, base, m.layer.DiffID, func(tar io.Writer) error {
			return image.JoinParts(ctx, io.MultiWriter(tar, w), tree{dir}, m.parts)
		})
	}
	var err error
	switch {
	case makes && m.parts != nil:
		err = m.writeBlob(ctx, verified)
	case makes:
		// A tar that has the same tree. Whether it is the tar that the layer came from, its digest says.
		err = m.writeBlob(ctx, func(w io.Writer) error { return writeDiff(ctx, w, dir, base, m.opts.Logger) })
	case m.parts != nil:
		err = verified(io.Discard)
	default:
		return nil // Verify compares the snapshot with its source
	}
	if err == nil {
		m.equal[m.layer.ID] = true
	}
	return err
}

// tree has the files of a layer.
type tree struct{ dir *os.File }

var _ storage.FileGetter = tree{}

// Get implements storage.FileGetter.
func (t tree) Get(name string) (io.ReadCloser, error) { return openInTree(t.dir, name) }

func writeDiff(ctx context.Context, w io.Writer, dir, base *os.File, log *slog.Logger) error {
	changes, err := trees.Changes(ctx, dir, base)
	if err != nil {
		return err
	}
	return layertar.Write(ctx, w, treeat.ProcPath(int(dir.Fd()), ""), changes, layertar.WriteOptions{Logger: log})
}

// viewTime is how long a view stays that a process has left behind.
const viewTime = 24 * time.Hour

// withView calls do with the tree of a committed snapshot, which cannot be changed. A lease of its own holds the view.
func (t *Target) withView(ctx context.Context, name string, do func(dir *os.File) error) (err error) {
	key := t.lease.ID + "-view-" + name
	lease := leases.Lease{ID: key}
	leased, err := t.underLease(ctx, lease.ID, leases.WithExpiration(viewTime), leases.WithLabel(ViewLabel, t.lease.ID))
	if err != nil {
		return err
	}
	end := context.WithoutCancel(ctx)
	defer func() {
		if deleted := t.leases.Delete(end, lease); deleted != nil && !errdefs.IsNotFound(deleted) {
			err = errors.Join(err, fmt.Errorf("delete lease %s: %w", lease.ID, deleted))
		}
	}()
	if err := t.snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) { // of a process that was killed
		return err
	}
	mounts, err := t.snapshots.View(leased, key, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.snapshots.Remove(end, key)) }()
	return withTree(mounts, do)
}

// writeBlob writes a blob of the layer to the content store. After an error there is none, and no upload.
func (m making) writeBlob(ctx context.Context, tar func(w io.Writer) error) (err error) {
	ref := m.lease + "-layer-" + m.layer.DiffID.String()
	w, err := content.OpenWriter(ctx, m.content, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: layerMediaType}))
	if err != nil {
		return fmt.Errorf("open upload: %w", err)
	}
	committed := false
	defer func() {
		err = errors.Join(err, w.Close())
		if committed {
			return
		}
		if aborted := m.content.Abort(context.WithoutCancel(ctx), ref); aborted != nil && !errdefs.IsNotFound(aborted) {
			err = errors.Join(err, fmt.Errorf("give up upload: %w", aborted))
		}
	}()
	if err := w.Truncate(0); err != nil { // of a process that was killed
		return fmt.Errorf("start upload anew: %w", err)
	}
	if err := m.compress(ctx, w, tar); err != nil {
		return err
	}
	blob := w.Digest()
	labels := map[string]string{uncompressedLabel: m.layer.DiffID.String(), FormatLabel: format.String()}
	if err := w.Commit(ctx, 0, blob, content.WithLabels(labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit upload: %w", err)
	}
	committed = true
	if err := m.hold(ctx, m.lease, "content", blob.String()); err != nil {
		return err
	}
	if err := containerdapi.Label(ctx, m.content, blob, labels); err != nil {
		return err
	}
	return m.noteLayer(ctx, blob)
}

// noteLayer notes the blob of the layer.
func (m making) noteLayer(ctx context.Context, blob digest.Digest) error {
	info, err := m.content.Info(ctx, blob)
	if err != nil {
		return err
	}
	all, err := m.known(ctx)
	if err == nil {
		note(all.layers, m.layer.DiffID, ocispec.Descriptor{MediaType: layerMediaType, Digest: blob, Size: info.Size})
	}
	return err
}

// compress writes the compressed tar. Returns errdefs.ErrDataLoss if the tar is not the layer's.
func (m making) compress(ctx context.Context, w io.Writer, tar func(w io.Writer) error) (err error) {
	pieces := bufio.NewWriterSize(stream.WriteUntil(ctx, w), 1<<20)
	compressed, err := layertar.Compress(pieces, format, 0)
	if err != nil {
		return err
	}
	digester := digest.Canonical.Digester()
	buffered := bufio.NewWriterSize(io.MultiWriter(compressed, digester.Hash()), 1<<16)
	err = tar(buffered)
	if err := errors.Join(err, buffered.Flush(), compressed.Close()); err != nil {
		return err
	}
	if got := digester.Digest(); got != m.layer.DiffID {
		return fault.New(errdefs.ErrDataLoss, "the tar of the layer cannot be made again: it has the digest %s and not %s", got, m.layer.DiffID)
	}
	return pieces.Flush()
}

// putBlob stores a small blob.
func (t *Target) putBlob(ctx context.Context, desc ocispec.Descriptor, data []byte, labels map[string]string) error {
	ref := t.lease.ID + "-blob-" + desc.Digest.String()
	if err := content.WriteBlob(ctx, t.content, ref, bytes.NewReader(data), desc, content.WithLabels(labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := t.hold(ctx, t.lease.ID, "content", desc.Digest.String()); err != nil {
		return err
	}
	return containerdapi.Label(ctx, t.content, desc.Digest, labels)
}
