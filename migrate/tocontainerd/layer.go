package tocontainerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/snapshotter"
)

// Values of FillingLabel.
const (
	untilCommit = "until commit" // of a snapshot that is committed when it is whole
	untilDone   = "until done"   // of a snapshot that stays active
)

// MakeLayer implements migrate.Target.
func (t *Target) MakeLayer(ctx context.Context, layer *migrate.Layer, content *migrate.Content, parts io.Reader) error {
	ctx = t.in(ctx)
	if err := t.recallNeeds(); err != nil {
		return err
	}
	if layer.Kind == migrate.ImageLayer && !t.needsOf(layer.ID).snapshot {
		return nil
	}
	p, err := t.placeOf(ctx, layer.ID)
	if err != nil {
		return err
	}
	if err := t.checkOwner(p); err != nil {
		return err
	}
	if p.container != "" && t.moby() {
		if err := t.checkConfig(p.container); err != nil {
			return fmt.Errorf("configuration of its container: %w", err)
		}
	}
	parent := ""
	if layer.Parent != "" {
		below, err := t.placeOf(ctx, layer.Parent)
		if err != nil {
			return fmt.Errorf("layer below: %w", err)
		}
		parent = below.name
	}
	lease, opts := t.lease.ID, []leases.Opt(nil)
	if p.container != "" && t.moby() {
		lease, opts = p.container, append(opts, leases.WithLabel(LayerLabel, layer.ID))
	}
	if ctx, err = t.underLease(ctx, lease, opts...); err != nil {
		return err
	}
	m := making{Target: t, layer: layer, from: content, parts: parts, name: p.name, parent: parent, lease: lease}
	if layer.Kind == migrate.ContainerLayer {
		return m.active(ctx)
	}
	return m.committed(ctx)
}

// making is a layer that is being made.
type making struct {
	*Target
	layer  *migrate.Layer
	from   *migrate.Content
	parts  io.Reader // nil: they were not kept
	name   string    // of the snapshot
	parent string    // name of the snapshot below
	lease  string
}

// committed makes a committed snapshot, and the blob of a layer of an image. A crash leaves an active one with the key.
func (m making) committed(ctx context.Context) error {
	key := keyOf(m.layer, m.name)
	info, err := m.snapshots.Stat(ctx, m.name)
	switch {
	case err == nil:
		return m.accept(ctx, info)
	case !errdefs.IsNotFound(err):
		return err
	}
	if err := m.forget(ctx, key); err != nil {
		return err
	}
	labels := map[string]string{LayerLabel: m.layer.ID, FillingLabel: untilCommit}
	err = m.fill(ctx, key, labels)
	if err == nil {
		// Others may rely on the name that the snapshot gets.
		err = m.tar(ctx, snapshots.Info{Name: key, Kind: snapshots.KindActive})
	}
	if err != nil {
		return errors.Join(err, m.forget(context.WithoutCancel(ctx), key))
	}
	labels = map[string]string{LayerLabel: m.layer.ID}
	if m.layer.Kind == migrate.ImageLayer {
		labels[snapshots.LabelSnapshotRef] = m.name
	}
	err = m.snapshots.Commit(ctx, m.name, key, snapshots.WithLabels(labels))
	if err == nil {
		return nil
	}
	err = errors.Join(err, m.forget(context.WithoutCancel(ctx), key))
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	if info, err = m.snapshots.Stat(ctx, m.name); err != nil {
		return err
	}
	return m.accept(ctx, info)
}

// accept takes a snapshot that is there for the layer, if it can be, and holds it. A snapshot under the chain ID of
// an image's layer has the files of that layer, also if another program has made it.
func (m making) accept(ctx context.Context, info snapshots.Info) error {
	delete(m.equal, m.layer.ID)
	switch {
	case info.Kind != snapshots.KindCommitted:
		return fault.New(errdefs.ErrAlreadyExists, "snapshot %s is another one: it is not committed", info.Name)
	case info.Parent != m.parent:
		return fault.New(errdefs.ErrAlreadyExists, "snapshot %s is another one: its parent is %q and not %q", info.Name, info.Parent, m.parent)
	case m.layer.Kind != migrate.ImageLayer && info.Labels[LayerLabel] != m.layer.ID:
		return fault.New(errdefs.ErrAlreadyExists, "snapshot %s is another one", info.Name)
	}
	if err := m.hold(ctx, m.lease, m.ofSnapshots(), info.Name); err != nil {
		return err
	}
	return m.tar(ctx, info)
}

// active makes the writable layer of a container. A crash leaves a snapshot with FillingLabel.
func (m making) active(ctx context.Context) error {
	info, err := m.snapshots.Stat(ctx, m.name)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return err
	case info.Labels[LayerLabel] != m.layer.ID:
		return fault.New(errdefs.ErrAlreadyExists, "snapshot %s is another one", info.Name)
	case info.Labels[FillingLabel] == "":
		return m.hold(ctx, m.lease, m.ofSnapshots(), info.Name)
	default:
		if err := m.forget(ctx, m.name); err != nil {
			return err
		}
	}
	labels := map[string]string{LayerLabel: m.layer.ID, FillingLabel: untilDone}
	if m.layer.Limit > 0 {
		labels[snapshots.LabelSnapshotMaxSize] = strconv.FormatInt(m.limitToFill(), 10)
	}
	if err := m.fill(ctx, m.name, labels); err != nil {
		if errors.Is(err, syscall.EDQUOT) { // which would be the end of the run, but it is the trouble of one container
			err = fault.New(errdefs.ErrResourceExhausted, "its files do not fit below its limit: %v", err)
		}
		return errors.Join(err, m.forget(context.WithoutCancel(ctx), m.name))
	}
	delete(labels, FillingLabel)
	if m.layer.Limit > 0 {
		labels[snapshots.LabelSnapshotMaxSize] = strconv.FormatInt(m.layer.Limit, 10)
		if m.offers != nil {
			if err := m.offers.LimitFilled(ctx, m.opts.Namespace, m.name, uint64(m.layer.Limit)); err != nil {
				return err
			}
		}
	}
	if !m.moby() {
		labels[rootLabel] = "migrated"
	}
	_, err = m.snapshots.Update(ctx, snapshots.Info{Name: m.name, Labels: labels}, "labels")
	return err
}

// limitToFill is the limit of a snapshot while it is filled: a container at its limit could not be copied below it. It is
// none in effect, and not that of containers without one.
func (m making) limitToFill() int64 {
	if m.offers == nil {
		return m.layer.Limit // perhaps it is not Cowshed, and cannot change a limit
	}
	return 1 << 60
}

// forget removes an active snapshot, if it is there.
func (m making) forget(ctx context.Context, key string) error {
	if err := m.snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// fill makes an active snapshot with the content of the layer, which survives a power cut.
func (m making) fill(ctx context.Context, key string, labels map[string]string) error {
	delete(m.equal, m.layer.ID)
	adopted, err := m.adopt(ctx, key, labels)
	if adopted || err != nil {
		return err
	}
	mounts, err := m.snapshots.Prepare(ctx, key, m.parent, snapshots.WithLabels(labels))
	if err != nil {
		return err
	}
	return withTree(mounts, func(dir *os.File) error {
		if err := m.copy(ctx, dir); err != nil {
			return err
		}
		return syncTree(dir)
	})
}

// adopt makes the snapshot a copy of the layer's volume, if Cowshed can do that.
func (m making) adopt(ctx context.Context, key string, labels map[string]string) (bool, error) {
	if m.offers == nil || m.from.Form != migrate.Whole || m.from.Volume == "" {
		return false, nil
	}
	err := m.offers.Offer(ctx, m.opts.Namespace, key, m.from.Volume)
	if err == nil {
		offered := map[string]string{snapshotter.AdoptLabel: snapshotter.Offered}
		mounts, prepared := m.snapshots.Prepare(ctx, key, m.parent, snapshots.WithLabels(labels), snapshots.WithLabels(offered))
		if prepared == nil {
			if err := m.checkOrigin(mounts); err != nil {
				return false, err // the caller removes it
			}
			m.equal[m.layer.ID] = true
			return true, nil
		}
		err = prepared
		// NotFound: Cowshed has been started again since the offer.
		if !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err) {
			return false, err
		}
	}
	m.opts.Logger.Debug("a volume is not adopted, and its files are copied", "layer", m.layer.ID, "volume", m.from.Volume, "error", err)
	return false, nil
}

// Settle implements migrate.Target. A snapshotter that cannot settle volumes has adopted none.
func (t *Target) Settle(ctx context.Context, layer *migrate.Layer) error {
	return t.offered(ctx, []*migrate.Layer{layer}, func(keys ...string) error {
		return t.offers.Settle(ctx, t.opts.Namespace, keys[0])
	})
}

// CheckSettle implements migrate.Target.
func (t *Target) CheckSettle(ctx context.Context, layers ...*migrate.Layer) error {
	return t.offered(ctx, layers, func(keys ...string) error {
		return t.offers.CheckSettle(ctx, t.opts.Namespace, keys...)
	})
}

// offered calls do with the snapshots of layers, unless the snapshotter has adopted none.
func (t *Target) offered(ctx context.Context, layers []*migrate.Layer, do func(keys ...string) error) error {
	if t.offers == nil {
		return nil
	}
	keys := make([]string, len(layers))
	for i, layer := range layers {
		info, err := t.find(t.in(ctx), layer)
		if err != nil {
			return err
		}
		keys[i] = info.Name
	}
	err := do(keys...)
	if errdefs.IsNotImplemented(err) {
		return nil
	}
	return err
}

// checkOrigin returns errdefs.ErrDataLoss if a snapshot was not made of the volume that the source has opened. Cowshed was
// told its path, and another one may be there by now, or a symbolic link on the way.
func (m making) checkOrigin(mounts []mount.Mount) error {
	return withTree(mounts, func(dir *os.File) error {
		is, err := isCopy(mounts, dir, m.from)
		if err == nil && !is {
			err = fault.New(errdefs.ErrDataLoss, "%s was another volume than the layer's", m.from.Volume)
		}
		return err
	})
}

// Has implements migrate.Target.
func (t *Target) Has(ctx context.Context, item migrate.Item) (bool, error) {
	ctx = t.in(ctx)
	var err error
	switch {
	case item.Image != nil:
		err = t.hasImage(ctx, item.Image)
	case item.Container != nil:
		err = t.hasContainer(ctx, item.Container)
	default:
		err = t.hasLayer(ctx, item.Layer)
	}
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// hasLayer returns errdefs.ErrNotFound if a layer is not there, or not whole. A layer that nothing needs counts as there.
func (t *Target) hasLayer(ctx context.Context, layer *migrate.Layer) error {
	if err := t.recallNeeds(); err != nil {
		return err
	}
	needs := t.needsOf(layer.ID)
	if layer.Kind == migrate.ImageLayer && !needs.snapshot {
		return nil
	}
	info, err := t.find(ctx, layer)
	if err != nil {
		return err
	}
	if (layer.Kind == migrate.ContainerLayer) != (info.Kind == snapshots.KindActive) || info.Labels[FillingLabel] != "" {
		return fault.New(errdefs.ErrNotFound, "snapshot %s is not whole", info.Name)
	}
	if layer.Kind == migrate.ImageLayer && needs.blob {
		_, err = t.layerBlob(ctx, layer.DiffID)
	}
	return err
}
