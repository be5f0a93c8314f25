// Package cowdriver gives any cowcommon.Backend the API of Docker's graph drivers.
package cowdriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/quota"
)

// Options configures a Driver. The zero value limits nothing and maps no ids.
type Options struct {
	IDMap     user.IdentityMapping
	Quota     quota.Options       // default and least size of layers, and the scope of every limit
	RootStyle cowcommon.RootStyle // of containers' layers that name none; DefaultRoot: SnapshotRoot
	Logger    *slog.Logger        // nil: slog.Default
	// BaseImages are images that the program has without pulling them. The driver lists them, and looks at none.
	BaseImages []graphdriver.CustomImageInfo
}

// Driver gives a Backend Docker's graphdriver API. A layer is a volume; the layer's id is its name.
//
// It is safe for concurrent use. Changes, Diff, DiffSize and DiffGetter work on views, so they show one
// moment of a layer even while a container writes to it.
type Driver struct {
	name    string
	backend cowcommon.Backend
	opts    Options
	log     *slog.Logger
	ctx     context.Context // of the calls that take none; see WithContext

	// Shared by the drivers that WithContext makes.
	comparer *cowcommon.Comparer
	applying *sync.Map // ids of layers that are being applied to
}

var _ graphdriver.DiffGetterDriver = (*Driver)(nil)

// New makes a Driver called name over backend, which it closes in Cleanup.
func New(name string, backend cowcommon.Backend, opts Options) *Driver {
	log := opts.Logger
	if log == nil {
		log = slog.Default()
	}
	log = log.With("driver", name)
	return &Driver{
		name: name, backend: backend, opts: opts, log: log, ctx: context.Background(),
		comparer: cowcommon.NewComparer(backend, opts.IDMap, log), applying: &sync.Map{},
	}
}

// WithContext returns the same driver with a context for the methods that take none, which are those of graphdriver's
// API: they end with ctx, and so does reading a Diff. Put and Cleanup, which release resources, do not.
func (d *Driver) WithContext(ctx context.Context) *Driver {
	other := *d
	other.ctx = ctx
	return &other
}

// String is the driver's name.
func (d *Driver) String() string { return d.name }

// Backend is the driver's Backend.
func (d *Driver) Backend() cowcommon.Backend { return d.backend }

// Create makes a layer that is to hold an image layer's content. Without a parent it is empty, and a root style has no
// effect. It has no limit unless opts names a size, and SnapshotRoot unless opts names another style. Errors are those
// of Backend.Create and Clone, and errdefs.ErrInvalidArgument for an id or option that cannot be.
func (d *Driver) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	return d.create(id, parent, opts, false)
}

// CreateReadWrite makes a layer for a container to write to. It differs from Create in having the
// driver's default limit and root style where opts names none. The default root style gives way to SnapshotRoot if the parent
// is writable and in use. If opts names SharedRoot, that is an errdefs.ErrFailedPrecondition.
func (d *Driver) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return d.create(id, parent, opts, true)
}

func (d *Driver) create(id, parent string, opts *graphdriver.CreateOpts, readWrite bool) (err error) {
	if opts == nil {
		opts = &graphdriver.CreateOpts{}
	}
	defer func() { err = d.wrap("create layer", id, err) }()

	if err := cowcommon.CheckID(id); err != nil {
		return err
	}
	volume, err := d.opts.volumeOptions(opts.StorageOpt, readWrite)
	if err != nil {
		return err
	}
	volume.MountLabel = opts.MountLabel
	if parent == "" {
		volume.UID, volume.GID = d.opts.IDMap.RootPair()
		return d.backend.Create(d.ctx, id, volume)
	}
	if err := cowcommon.CheckID(parent); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	err = d.backend.Clone(d.ctx, id, parent, volume)
	if errors.Is(err, fault.ErrInUse) && volume.RootStyle == cowcommon.SharedRoot && !namesRootStyle(opts.StorageOpt) {
		d.log.Info("a layer does not have the root style that is configured", "layer", id, "reason", err)
		volume.RootStyle = cowcommon.SnapshotRoot
		err = d.backend.Clone(d.ctx, id, parent, volume)
	}
	return err
}

// Remove destroys a layer. Removing an absent layer is not an error.
func (d *Driver) Remove(id string) error {
	if err := cowcommon.CheckID(id); err != nil {
		return d.wrap("remove layer", id, err)
	}
	return d.wrap("remove layer", id, d.backend.Remove(d.ctx, id))
}

// Get makes a layer's tree reachable and returns its root. Each Get needs a Put.
func (d *Driver) Get(id, mountLabel string) (string, error) {
	if err := cowcommon.CheckID(id); err != nil {
		return "", d.wrap("get layer", id, err)
	}
	dir, err := d.backend.Mount(d.ctx, id, mountLabel)
	return dir, d.wrap("get layer", id, err)
}

// Put releases one Get. Without a Get it does nothing.
func (d *Driver) Put(id string) error {
	if err := cowcommon.CheckID(id); err != nil {
		return d.wrap("put layer", id, err)
	}
	return d.wrap("put layer", id, d.backend.Unmount(context.WithoutCancel(d.ctx), id))
}

// Exists reports whether the layer is there.
func (d *Driver) Exists(id string) bool {
	if cowcommon.CheckID(id) != nil {
		return false
	}
	_, err := d.backend.Stat(d.ctx, id)
	return err == nil
}

// Status describes the driver and its filesystem as they are now.
func (d *Driver) Status() [][2]string {
	status := append(d.backend.Status(d.ctx), [2]string{"Native Diff", d.NativeDiff()})
	if d.opts.Quota.Size != 0 {
		status = append(status, [2]string{"Default Size", quota.FormatSize(d.opts.Quota.Size)})
	}
	return append(status, [2]string{"Quota Scope", d.opts.Quota.Scope.String()}, [2]string{"Root Style", string(d.opts.rootStyle())})
}

// NativeDiff says for people whether the filesystem tells which files changed.
func (d *Driver) NativeDiff() string {
	if err := d.comparer.NotNative(); err != nil {
		return "not used for the last diff: " + err.Error()
	}
	return "available"
}

// GetMetadata describes a layer: the backend's own facts about it, and Parent, Sealed, Root Style, Limit and Usage
// where they are known, the latter two in bytes.
func (d *Driver) GetMetadata(id string) (map[string]string, error) {
	if err := cowcommon.CheckID(id); err != nil {
		return nil, d.wrap("describe layer", id, err)
	}
	v, err := d.backend.Stat(d.ctx, id)
	if err != nil {
		return nil, d.wrap("describe layer", id, err)
	}
	metadata := make(map[string]string, len(v.Details)+4)
	for name, value := range v.Details {
		metadata[name] = value
	}
	metadata["Sealed"] = strconv.FormatBool(v.Sealed)
	if v.Parent != "" {
		metadata["Parent"] = v.Parent
	}
	if v.RootStyle != cowcommon.DefaultRoot {
		metadata["Root Style"] = string(v.RootStyle)
	}
	if v.Limit.Bytes != 0 {
		metadata["Limit"] = strconv.FormatUint(v.Limit.Bytes, 10)
		metadata["LimitScope"] = v.Limit.Scope.String()
	}
	switch usage, err := cowcommon.Usage(d.ctx, d.backend, id); {
	case err == nil:
		metadata["Usage"] = strconv.FormatUint(usage.Bytes, 10)
	case !errdefs.IsNotImplemented(err):
		return nil, d.wrap("describe layer", id, err)
	}
	return metadata, nil
}

// Cleanup releases the driver's resources. Layers stay.
func (d *Driver) Cleanup() error {
	return fault.Wrap("clean up driver", d.name, d.backend.Close())
}

// ApplyDiff extracts an uncompressed layer tar into a layer and returns the sum of the sizes of its
// files. When it returns without an error, all of it survives a power cut.
//
// parent is not looked at: the layer was cloned from it. An error leaves the layer part-filled and
// removable.
func (d *Driver) ApplyDiff(id, _ string, diff io.Reader) (int64, error) {
	return d.Apply(d.ctx, id, diff)
}

// Apply is ApplyDiff with a context. Returns errdefs.ErrFailedPrecondition if the layer is sealed, or if another
// Apply of this driver works on it.
func (d *Driver) Apply(ctx context.Context, id string, diff io.Reader) (size int64, err error) {
	return d.ApplyWith(ctx, id, diff, layertar.ApplyOptions{})
}

// ApplyWith is Apply with options, of which the driver sets IDMap, Xattrs, Empty and Logger.
func (d *Driver) ApplyWith(ctx context.Context, id string, diff io.Reader, opts layertar.ApplyOptions) (size int64, err error) {
	if err := cowcommon.CheckID(id); err != nil {
		return 0, d.wrap("apply to layer", id, err)
	}
	if _, taken := d.applying.LoadOrStore(id, nil); taken {
		return 0, d.wrap("apply to layer", id, fault.New(fault.ErrInUse, "a diff is being applied to it already"))
	}
	defer d.applying.Delete(id)
	opts.IDMap, opts.Logger = d.opts.IDMap, d.log
	size, err = cowcommon.Apply(ctx, d.backend, id, diff, opts)
	return size, d.wrap("apply to layer", id, err)
}

// Usage returns the size of a layer's own data. With quotas on, the filesystem counts it. Else it is the sum of the
// sizes of added and changed files, at a cost in proportion to their number. A layer with a shared root is not compared for
// that: files that were changed back count too.
func (d *Driver) Usage(ctx context.Context, id string) (quota.Usage, error) {
	if err := cowcommon.CheckID(id); err != nil {
		return quota.Usage{}, d.wrap("usage of layer", id, err)
	}
	usage, err := cowcommon.Usage(ctx, d.backend, id)
	if err == nil || !errdefs.IsNotImplemented(err) {
		return usage, d.wrap("usage of layer", id, err)
	}
	v, err := d.backend.Stat(ctx, id)
	if err != nil {
		return quota.Usage{}, d.wrap("usage of layer", id, err)
	}
	size, err := cowcommon.ChangesSize(ctx, d.backend, id, v.Parent)
	if errdefs.IsNotImplemented(err) {
		size, err = d.diffSize(ctx, id, v.Parent)
	}
	return quota.Usage{Bytes: uint64(size)}, d.wrap("usage of layer", id, err)
}

// SetLimit replaces a layer's limit; 0 bytes removes it. The limit has the driver's quota scope.
func (d *Driver) SetLimit(ctx context.Context, id string, bytes uint64) error {
	if err := cowcommon.CheckID(id); err != nil {
		return d.wrap("limit layer", id, err)
	}
	return d.wrap("limit layer", id, cowcommon.SetLimit(ctx, d.backend, id, d.Limit(bytes)))
}

// Limit is the limit of a layer to so many bytes, in the driver's quota scope. 0 bytes are no limit.
func (d *Driver) Limit(bytes uint64) quota.Limit {
	if bytes == 0 {
		return quota.Limit{}
	}
	return quota.Limit{Bytes: bytes, Scope: d.opts.Quota.Scope}
}

// Compare is cowcommon.Comparer.Compare.
func (d *Driver) Compare(ctx context.Context, id, parent string, way cowcommon.Way) (*cowcommon.Comparison, error) {
	return d.comparer.Compare(ctx, id, parent, way)
}

// CompareStats counts the comparisons since the driver was made.
func (d *Driver) CompareStats() cowcommon.CompareStats { return d.comparer.Stats() }

func (d *Driver) diffSize(ctx context.Context, id, parent string) (size int64, err error) {
	unused := d.compareUnused(ctx, id, parent, func(ctx context.Context, c *cowcommon.Comparison) (err error) {
		size, err = treediff.Size(ctx, c.Dir(), c.Changes)
		return err
	})
	if unused {
		return size, nil
	}
	c, err := d.Compare(ctx, id, parent, cowcommon.Auto)
	if err != nil {
		return 0, err
	}
	size, err = treediff.Size(ctx, c.Dir(), c.Changes)
	return size, errors.Join(err, c.Close())
}

// compareUnused calls do with the changes of a layer since parent, if no snapshot is needed for that. If it returns false, the
// work of do counts for nothing.
func (d *Driver) compareUnused(ctx context.Context, id, parent string, do func(ctx context.Context, c *cowcommon.Comparison) error) bool {
	if parent == "" {
		return false
	}
	err := d.comparer.CompareUnused(ctx, id, parent, do)
	if err != nil && !errdefs.IsNotImplemented(err) {
		d.log.Debug("a layer is compared by a snapshot", "layer", id, "reason", err)
	}
	return err == nil
}

// DiffSize is the sum of the sizes of the files that Diff would write, in bytes.
func (d *Driver) DiffSize(id, parent string) (int64, error) {
	size, err := d.diffSize(d.ctx, id, parent)
	return size, d.wrap("size the diff of layer", id, err)
}

// Changes lists the changes of a layer since parent, sorted by path. With parent "" everything is added.
func (d *Driver) Changes(id, parent string) (changes []archive.Change, err error) {
	unused := d.compareUnused(d.ctx, id, parent, func(_ context.Context, c *cowcommon.Comparison) error {
		changes = c.Changes
		return nil
	})
	if unused {
		return changes, nil
	}
	c, err := d.Compare(d.ctx, id, parent, cowcommon.Auto)
	if err != nil {
		return nil, d.wrap("list changes of layer", id, err)
	}
	return c.Changes, d.wrap("list changes of layer", id, c.Close())
}

// mostInMemory is the size of the files of a diff that is written to memory.
const mostInMemory = 1 << 20

var errTooLarge = errors.New("its changes are too large to be kept in memory")

// Diff writes the changes of a layer since parent as an uncompressed tar. Closing the reader early stops it. A
// failure, that of releasing the layer included, is an error of reading or, if the reader has not come to it, of
// Close.
func (d *Driver) Diff(id, parent string) (io.ReadCloser, error) {
	var small bytes.Buffer
	unused := d.compareUnused(d.ctx, id, parent, func(ctx context.Context, c *cowcommon.Comparison) error {
		size, err := treediff.Size(ctx, c.Dir(), c.Changes)
		if err == nil && size > mostInMemory {
			err = errTooLarge
		}
		if err != nil {
			return err
		}
		return c.WriteTar(ctx, &small, nil)
	})
	if unused {
		return io.NopCloser(stream.ReadUntil(d.ctx, &small)), nil
	}
	c, err := d.Compare(d.ctx, id, parent, cowcommon.Auto)
	if err != nil {
		return nil, d.wrap("diff layer", id, err)
	}
	return stream.New(d.ctx, func(ctx context.Context, w io.Writer) error {
		return d.wrap("diff layer", id, c.WriteTar(ctx, w, nil))
	}, func() error { return d.wrap("diff layer", id, c.Close()) }), nil
}

// DiffGetter gives access to the files of a layer as they are now, by the names that Diff gives them.
func (d *Driver) DiffGetter(id string) (graphdriver.FileGetCloser, error) {
	if err := cowcommon.CheckID(id); err != nil {
		return nil, d.wrap("read files of layer", id, err)
	}
	view, err := d.backend.View(d.ctx, id)
	if err != nil {
		return nil, d.wrap("read files of layer", id, err)
	}
	files, err := newFileGetter(view)
	if err != nil {
		return nil, d.wrap("read files of layer", id, errors.Join(err, view.Close()))
	}
	return files, nil
}

// wrap says which operation has failed on which layer.
func (d *Driver) wrap(operation, id string, err error) error {
	return fault.Wrap(operation, id, cowcommon.AsReadOnly(err))
}
