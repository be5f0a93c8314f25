package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/flock"
)

const (
	// promotionLabel is the label of a lease that holds an image until containerd knows it by its name: the directory of the records
	// of the store that the image comes from.
	promotionLabel = "cowshed.dev/promotion"
	// promotionTime is how long such a lease lasts if its process was killed, and nobody writes to the namespace again.
	promotionTime = 24 * time.Hour
	// giveUpTime is how long containerd may take to forget an image that is given up.
	giveUpTime = 10 * time.Second
	// promotionsFile is locked by processes that write images to containerd.
	promotionsFile = ".containerd"

	configReference = "containerd.io/gc.ref.content.config"
	layerReference  = "containerd.io/gc.ref.content.l." // and a number
)

// containerdWriter writes an image to a namespace of containerd. A lease holds its blobs until it has a name.
type containerdWriter struct {
	ctx       context.Context // for close
	services  *containerdapi.Services
	namespace string
	name      string
	replace   bool
	source    string      // value of promotionLabel
	lock      *flock.Lock // keeps others from deleting the lease; nil: nothing can be locked
	lease     leases.Lease
	uploads   []*contentUpload
	finished  bool
}

var (
	_ destination = (*containerdWriter)(nil)
	_ holder      = (*containerdWriter)(nil)
)

func (s *Store) newContainerdWriter(ctx context.Context, ref Reference, opts ExportOptions) (_ *containerdWriter, err error) {
	if opts.Containerd == nil {
		return nil, fault.Said(errdefs.ErrNotImplemented, "the address of containerd is not known here")
	}
	services, err := opts.Containerd()
	if err != nil {
		return nil, err
	}
	w := &containerdWriter{ctx: context.WithoutCancel(ctx), services: services, namespace: ref.Path, name: ref.Image, replace: opts.Replace, source: s.dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	ctx = w.in(ctx)
	if err := w.lockPromotions(ctx, s.path(promotionsFile)); err != nil {
		return nil, err
	}
	if err := w.checkName(ctx); err != nil {
		return nil, err
	}
	var lease leases.Lease
	if err := leases.WithRandomID()(&lease); err != nil {
		return nil, err
	}
	w.lease = lease // close deletes it, also if the outcome is not known
	made := []leases.Opt{leases.WithID(lease.ID), leases.WithExpiration(promotionTime)}
	if w.lock != nil { // else it only expires: a process that can lock would take it for that of a killed one
		made = append(made, leases.WithLabel(promotionLabel, w.source))
	}
	if _, err = services.Leases.Create(ctx, made...); err != nil {
		return nil, fmt.Errorf("create lease: %w", err)
	}
	return w, nil
}

// in gives requests the namespace and the lease.
func (w *containerdWriter) in(ctx context.Context) context.Context {
	ctx = namespaces.WithNamespace(ctx, w.namespace)
	if w.lease.ID != "" {
		ctx = leases.WithLease(ctx, w.lease.ID)
	}
	return ctx
}

// lockPromotions deletes the leases of killed processes if no other process has one, and keeps others from doing so.
func (w *containerdWriter) lockPromotions(ctx context.Context, file string) (err error) {
	w.lock, err = flock.Open(file, os.O_CREATE|os.O_RDWR)
	if errors.Is(err, syscall.EROFS) {
		w.lock = nil
		return nil
	}
	if err != nil {
		return err
	}
	if err := takeAlone(w.lock); err == nil {
		if err := w.sweep(ctx); err != nil {
			return err
		}
	} else if !errors.Is(err, errLocked) {
		return err
	}
	return w.lock.Shared(ctx)
}

// sweep deletes leases that killed processes have left, and with them all that nothing else holds.
func (w *containerdWriter) sweep(ctx context.Context) error {
	left, err := w.services.Leases.List(ctx, fmt.Sprintf("labels.%q==%q", promotionLabel, w.source))
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range left {
		if err := w.services.Leases.Delete(ctx, lease, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
	}
	return nil
}

// checkName refuses the name of another image before anything is written.
func (w *containerdWriter) checkName(ctx context.Context) error {
	_, err := w.services.Images.Get(ctx, w.name)
	switch {
	case errdefs.IsNotFound(err), err == nil && w.replace:
		return nil
	case err == nil:
		return w.taken()
	}
	return fmt.Errorf("ask containerd for image %s: %w", w.name, err)
}

func (w *containerdWriter) taken() error {
	return fault.New(errdefs.ErrAlreadyExists, "containerd has an image %s in the namespace %s", w.name, w.namespace)
}

// held implements holder. containerd has the blob of a layer in one format, which need not be that.
func (w *containerdWriter) held(ctx context.Context, diffIDs []digest.Digest, _ layertar.Format) []*blob {
	ctx = w.in(ctx)
	var filters []string
	for _, id := range diffIDs {
		filters = append(filters, fmt.Sprintf("labels.%q==%q", labels.LabelUncompressed, id), fmt.Sprintf("digest==%q", id))
	}
	if len(filters) == 0 {
		return nil
	}
	blobs := make(map[digest.Digest]content.Info)
	err := w.services.Content.Walk(ctx, func(info content.Info) error {
		of := digest.Digest(info.Labels[labels.LabelUncompressed])
		if of == "" {
			of = info.Digest
		}
		blobs[of] = info
		return nil
	}, filters...)
	if err != nil {
		return nil // writing them says so
	}
	var found []*blob
	for _, id := range diffIDs {
		info, ok := blobs[id]
		if !ok {
			break
		}
		b, err := w.hold(ctx, id, info.Digest)
		if err != nil {
			break
		}
		found = append(found, b)
	}
	return found
}

// hold makes the lease hold a blob that is there.
func (w *containerdWriter) hold(ctx context.Context, diffID, stored digest.Digest) (*blob, error) {
	if err := w.lend(ctx, stored); err != nil {
		return nil, err
	}
	data, err := w.services.Content.ReaderAt(ctx, ocispec.Descriptor{Digest: stored})
	if err != nil {
		return nil, err
	}
	defer data.Close()
	tar, format, err := layertar.Decompress(io.NewSectionReader(data, 0, data.Size()))
	if err != nil {
		return nil, err
	}
	if err := tar.Close(); err != nil {
		return nil, err
	}
	if format != layertar.Gzip && format != layertar.Zstd && stored != diffID {
		return nil, fault.New(errdefs.ErrNotImplemented, "layer compressed by %s", format)
	}
	return &blob{digest: stored, diffID: diffID, size: data.Size(), format: format}, nil
}

// lend adds a blob to the lease. It need not be there yet.
func (w *containerdWriter) lend(ctx context.Context, blob digest.Digest) error {
	if err := w.services.Leases.AddResource(ctx, w.lease, leases.Resource{ID: blob.String(), Type: "content"}); err != nil {
		return fmt.Errorf("lease %s: %w", blob, err)
	}
	return nil
}

// contentUpload is an upload to the content store.
type contentUpload struct {
	*bufio.Writer
	dest   *containerdWriter
	ref    string
	store  content.Writer
	stored bool
}

func (w *containerdWriter) newBlob(ctx context.Context, _ bool) (upload, error) {
	ref := "cowshed-promote-" + rand.Text()
	store, err := w.services.Content.Writer(w.in(ctx), content.WithRef(ref))
	if err != nil {
		return nil, fmt.Errorf("open upload: %w", err)
	}
	u := &contentUpload{Writer: bufio.NewWriterSize(store, blobPiece), dest: w, ref: ref, store: store}
	w.uploads = append(w.uploads, u)
	return u, nil
}

// end implements upload. The lease holds the blob before it is there: it may have been there all the time.
func (u *contentUpload) end(ctx context.Context, b *blob) error {
	ctx = u.dest.in(ctx)
	if err := u.Flush(); err != nil {
		return err
	}
	if err := u.dest.lend(ctx, b.digest); err != nil {
		return err
	}
	uncompressed := make(map[string]string)
	if b.format != layertar.Plain {
		uncompressed[labels.LabelUncompressed] = b.diffID.String()
	}
	err := u.store.Commit(ctx, b.size, b.digest, content.WithLabels(uncompressed))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit upload: %w", err)
	}
	u.stored = err == nil // else the upload is still there
	return containerdapi.Label(ctx, u.dest.services.Content, b.digest, uncompressed)
}

// giveUp ends an upload.
func (u *contentUpload) giveUp(ctx context.Context) error {
	err := u.store.Close()
	if u.stored {
		return err
	}
	if aborted := u.dest.services.Content.Abort(ctx, u.ref); aborted != nil && !errdefs.IsNotFound(aborted) {
		err = errors.Join(err, fmt.Errorf("give up upload: %w", aborted))
	}
	return err
}

func (w *containerdWriter) finish(ctx context.Context, image *writtenImage) error {
	ctx = w.in(ctx)
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(image.config), Size: int64(len(image.config))}
	if err := w.put(ctx, config, image.config, nil); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	references := map[string]string{configReference: config.Digest.String()}
	for i, b := range image.layers {
		references[layerReference+strconv.Itoa(i)] = b.digest.String()
	}
	manifest := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(image.manifest), Size: int64(len(image.manifest))}
	if err := w.put(ctx, manifest, image.manifest, references); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	err := w.nameImage(ctx, image, manifest)
	w.finished = err == nil
	return err
}

// put stores a small blob.
func (w *containerdWriter) put(ctx context.Context, desc ocispec.Descriptor, data []byte, labels map[string]string) error {
	if err := w.lend(ctx, desc.Digest); err != nil {
		return err
	}
	ref := "cowshed-promote-" + rand.Text()
	err := content.WriteBlob(ctx, w.services.Content, ref, bytes.NewReader(data), desc, content.WithLabels(labels))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return containerdapi.Label(ctx, w.services.Content, desc.Digest, labels)
}

// nameImage gives the manifest its name. If the outcome is not known, it looks.
func (w *containerdWriter) nameImage(ctx context.Context, image *writtenImage, target ocispec.Descriptor) error {
	record := images.Image{Name: w.name, Target: target}
	_, err := w.services.Images.Create(ctx, record)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTime)
	defer cancel()
	there, lookErr := w.services.Images.Get(ctx, w.name)
	switch {
	case lookErr != nil:
		return errors.Join(err, lookErr)
	case there.Target.Digest == target.Digest:
		return nil
	case !errdefs.IsAlreadyExists(err):
		return err
	case !w.replace:
		return w.taken()
	}
	_, err = w.services.Images.Update(ctx, record, "target")
	if err == nil {
		image.replaced = append(image.replaced, there.Target.Digest)
	}
	return err
}

// close implements destination. Without a name, the image is garbage that goes with the lease.
func (w *containerdWriter) close() error {
	ctx, cancel := context.WithTimeout(w.ctx, giveUpTime)
	defer cancel()
	ctx = w.in(ctx)
	var errs []error
	for _, u := range w.uploads {
		errs = append(errs, u.giveUp(ctx))
	}
	w.uploads = nil
	if w.lease.ID != "" {
		var opts []leases.DeleteOpt
		if !w.finished {
			opts = append(opts, leases.SynchronousDelete)
		}
		if err := w.services.Leases.Delete(ctx, w.lease, opts...); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete lease %s, which expires within %s: %w", w.lease.ID, promotionTime, err))
		}
	}
	if w.lock != nil {
		errs = append(errs, w.lock.Close())
	}
	return errors.Join(append(errs, w.services.Close())...)
}
