package tocontainerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate"
)

// Labels that a Target gives to the things that it makes. They are containerd's to keep; it passes none of them on to
// Cowshed.
const (
	// LayerLabel is a label of a snapshot: the ID of the layer in the old root. It is also a label of the lease of a
	// container: the ID of the first layer for which it was made.
	LayerLabel = "cowshed.dev/migrate.layer"
	// FillingLabel is a label of an active snapshot that is not whole.
	FillingLabel = "cowshed.dev/migrate.filling"
	// FormatLabel is a label of the blob of a layer: the name of the layertar.Format, by which it is found again.
	FormatLabel = "cowshed.dev/migrate.format"
	// ImageLabel is a label of an image and its manifest: the ID of the image in the old root.
	ImageLabel = "cowshed.dev/migrate.image"
	// TagLabel is a label of an image that the migration has named: that name. "docker tag" copies the labels of an image, and
	// the name tells the copy.
	TagLabel = "cowshed.dev/migrate.tag"
	// ParentLabel is a label of an image: the ID, in the old root, of the image that it was built from.
	ParentLabel = "cowshed.dev/migrate.parent"
	// NameLabel is a label of the snapshot of a container in other namespaces than Moby: the name of the container.
	NameLabel = "cowshed.dev/migrate.name"

	// ViewLabel is a label of the lease of a view: the name of the migration's lease.
	ViewLabel = "cowshed.dev/migrate.view"

	rootLabel = "containerd.io/gc.root"
)

// Target is a migrate.Target in a containerd. Its Check has to be called before its Make methods: it says how layers and
// containers belong together.
type Target struct {
	*services
	opts   Options
	lease  leases.Lease
	places map[string]place // of the layers in the inventory, by ID
	others bool             // the containers in the inventory are not Docker's
	made   map[string]place // of layers of containers that are there; nil: not looked for yet

	blobs        *blobs           // nil: not listed yet
	needs        map[string]needs // of layers of images that are not needed as a whole, by ID; nil: not known yet
	equal        map[string]bool  // layers that this process knows to be equal to their source's, by ID
	collectLater func() error     // nil: nothing has become garbage
	undoing      bool
}

var _ migrate.Target = (*Target)(nil)

// New connects to a containerd. The caller closes the Target. Returns errdefs.ErrNotFound if containerd does not know
// the snapshotter.
func New(ctx context.Context, o Options) (*Target, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s, err := connect(ctx, o)
	t := newTarget(o, s)
	if err != nil && s != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, err
}

// newTarget makes a Target of options that are complete.
func newTarget(o Options, s *services) *Target {
	state := o.StateDir
	if abs, err := filepath.Abs(state); err == nil {
		state = abs
	}
	sum := sha256.Sum256([]byte(state))
	lease := leases.Lease{ID: "cowshed-migrate-" + hex.EncodeToString(sum[:8])}
	return &Target{services: s, opts: o, lease: lease, equal: make(map[string]bool)}
}

// Close implements migrate.Target.
func (t *Target) Close() error {
	var errs []error
	if t.collectLater != nil {
		errs = append(errs, t.collectLater())
	}
	for _, f := range t.closers {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (t *Target) moby() bool { return t.opts.Namespace == Moby }

// in is a context for requests in the namespace.
func (t *Target) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, t.opts.Namespace)
}

// underLease is a context for requests whose results a lease holds, which is made if need be. It has no end.
func (t *Target) underLease(ctx context.Context, id string, opts ...leases.Opt) (context.Context, error) {
	if _, err := t.leases.Create(ctx, append(opts, leases.WithID(id))...); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create lease %s: %w", id, err)
	}
	return leases.WithLease(ctx, id), nil
}

// hold adds a thing to a lease.
func (t *Target) hold(ctx context.Context, lease, kind, id string) error {
	err := t.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{Type: kind, ID: id})
	if err != nil {
		return fmt.Errorf("add %s to lease %s: %w", id, lease, err)
	}
	return nil
}

func (t *Target) ofSnapshots() string { return "snapshots/" + t.opts.Snapshotter }

// endLeases deletes the lease of the migration, and those of views that a killed process has left.
func (t *Target) endLeases(ctx context.Context) error {
	err := t.deleteLeases(ctx, ViewLabel, t.lease.ID)
	return errors.Join(err, t.endLease(ctx, t.lease))
}

// deleteLeases deletes the leases with a label.
func (t *Target) deleteLeases(ctx context.Context, label, value string) error {
	list, err := t.leases.List(ctx, fmt.Sprintf("labels.%q==%q", label, value))
	for _, lease := range list {
		if deleted := t.leases.Delete(ctx, lease); deleted != nil && !errdefs.IsNotFound(deleted) {
			err = errors.Join(err, fmt.Errorf("delete lease %s: %w", lease.ID, deleted))
		}
	}
	return err
}

// endLease deletes a lease. Whatever nothing else holds is garbage then, and containerd collects it before it answers.
func (t *Target) endLease(ctx context.Context, lease leases.Lease) error {
	if err := t.leases.Delete(ctx, lease, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %s: %w", lease.ID, err)
	}
	return nil
}
