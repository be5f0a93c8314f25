package tocontainerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/containerd/v2/core/leases"
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
	p, err := t.placeOf(ctx, layer.ID)
	if err != nil {
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
	m := making{Target: t, layer: layer, from: content, name: p.name, parent: parent, lease: lease}
	switch layer.Kind {
	case migrate.ContainerLayer:
		return m.active(ctx)
	case migrate.InitLayer:
		return m.committed(ctx)
	}
	if err := m.committed(ctx); err != nil {
		return err
	}
	return m.blob(ctx, parts)
}

// making is a layer that is being made.
type making struct {
	*Target
	layer  *migrate.Layer
	from   *migrate.Content
	name   string // of the snapshot
	parent string // name of the snapshot below
	lease  string
}

// committed makes a committed snapshot. A crash leaves an active one with the key.
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
	if err := m.fill(ctx, key, labels); err != nil {
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
	switch {
	case info.Kind != snapshots.KindCommitted:
		return fault.New(errdefs.ErrAlreadyExists, "snapshot %s is another one: it is not committed", info.Name)
	case info.Parent != m.parent:
		return fault.New(errdefs.ErrAlreadyExists, "snapshot %s is another one: its parent is %q and not %q", info.Name, info.Parent, m.parent)
	case m.layer.Kind != migrate.ImageLayer && info.Labels[LayerLabel] != m.layer.ID:
		return fault.New(errdefs.ErrAlreadyExists, "snapshot %s is another one", info.Name)
	}
	return m.hold(ctx, m.lease, m.ofSnapshots(), info.Name)
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
		labels[snapshots.LabelSnapshotMaxSize] = strconv.FormatInt(m.layer.Limit, 10)
	}
	if err := m.fill(ctx, m.name, labels); err != nil {
		return errors.Join(err, m.forget(context.WithoutCancel(ctx), m.name))
	}
	delete(labels, FillingLabel)
	if !m.moby() {
		labels[rootLabel] = "migrated"
	}
	_, err = m.snapshots.Update(ctx, snapshots.Info{Name: m.name, Labels: labels}, "labels")
	return err
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
		_, err = m.snapshots.Prepare(ctx, key, m.parent, snapshots.WithLabels(labels), snapshots.WithLabels(offered))
		if err == nil {
			return true, nil
		}
		// NotFound: Cowshed has been started again since the offer.
		if !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err) {
			return false, err
		}
	}
	m.opts.Logger.Debug("a volume is not adopted, and its files are copied", "layer", m.layer.ID, "volume", m.from.Volume, "error", err)
	return false, nil
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

// hasLayer returns errdefs.ErrNotFound if a layer is not there, or not whole.
func (t *Target) hasLayer(ctx context.Context, layer *migrate.Layer) error {
	info, err := t.find(ctx, layer)
	if err != nil {
		return err
	}
	if (layer.Kind == migrate.ContainerLayer) != (info.Kind == snapshots.KindActive) || info.Labels[FillingLabel] != "" {
		return fault.New(errdefs.ErrNotFound, "snapshot %s is not whole", info.Name)
	}
	if layer.Kind == migrate.ImageLayer {
		_, err = t.layerBlob(ctx, layer.DiffID)
	}
	return err
}
