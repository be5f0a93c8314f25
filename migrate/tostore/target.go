// Package tostore is the target of a migration that is the store of the command cowshed: layers in a driver, and
// records of images beside them.
//
// Layers of images get the names that an import gives them, so that images share them. The layer of a container gets
// the container's name, and the layer below it that name with "-init".
package tostore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/fill"
)

// Options says which store it is.
type Options struct {
	Driver *cowdriver.Driver
	Images string // directory of the records of images, whose layers are in Driver
	Home   string // of Driver
	// State is a directory for files of the target, which is made when it is needed.
	State  string
	Origin string // of the images, for people
	Trust  bool   // layers are not verified before they get their names
	Logger *slog.Logger
}

// Target is a store. It implements migrate.Target.
type Target struct {
	opts    Options
	backend cowcommon.Backend
	images  *image.Store
	names   *names

	mu       sync.Mutex
	takeover *image.Takeover
	verified fill.Verified
}

var _ migrate.Target = (*Target)(nil)

// New makes a Target. The caller keeps the store open until the Target is closed.
func New(opts Options) (*Target, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	names, err := openNames(opts.State)
	if err != nil {
		return nil, err
	}
	return &Target{
		opts:    opts,
		backend: opts.Driver.Backend(),
		images:  image.NewStore(opts.Images, opts.Driver, opts.Logger),
		names:   names,
	}, nil
}

// Close implements migrate.Target. The store stays open.
func (t *Target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.names.close()
	if t.takeover != nil {
		err = errors.Join(err, t.takeover.Close())
		t.takeover = nil
	}
	return err
}

// open locks the store the first time that it is to be changed.
func (t *Target) open(ctx context.Context) (*image.Takeover, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.takeover != nil {
		return t.takeover, nil
	}
	var err error
	t.takeover, err = t.images.TakeOver(ctx)
	return t.takeover, err
}

// Check implements migrate.Target.
func (t *Target) Check(ctx context.Context, source migrate.Source, inv *migrate.Inventory) error {
	if err := t.names.dropTaken(func(m made) (bool, error) {
		there, err := t.exists(ctx, m.Name)
		if !there || err != nil {
			return false, err
		}
		own, err := t.isOwn(ctx, m)
		return !own, err
	}); err != nil {
		return err
	}
	if err := t.names.choose(inv, func(name string) (bool, error) { return t.exists(ctx, name) }); err != nil {
		return err
	}
	for i := range inv.Images {
		if err := t.checkNames(&inv.Images[i]); err != nil {
			return err
		}
	}
	has := func(layer *migrate.Layer) (bool, error) { return t.Has(ctx, migrate.Item{Layer: layer}) }
	return fill.CheckSpace(ctx, fill.HasRoom(t.backend, t.opts.Home), inv, has, migrate.NewForecast(source, t.How))
}

// checkNames returns ErrAlreadyExists if another image has one of the names.
func (t *Target) checkNames(img *migrate.Image) error {
	for _, name := range imageNames(img) {
		if image.CheckName(name) != nil {
			continue // a problem of that image
		}
		there, err := t.images.Get(name)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return err
		case there.ID() != img.ID:
			return fault.New(errdefs.ErrAlreadyExists, "the store has another image %s: remove it with cowshed rmi %[1]s, or give the source's another name", name)
		}
	}
	return nil
}

// imageNames are the names of an image in the store. An untagged image is named by its ID.
func imageNames(img *migrate.Image) []string {
	if len(img.Names) == 0 {
		return []string{"untagged:" + img.ID.Encoded()[:12]}
	}
	names := make([]string, len(img.Names))
	for i, name := range img.Names {
		names[i] = image.FamiliarName(name)
	}
	return names
}

// BlobSize implements migrate.Target. It makes no blobs.
func (*Target) BlobSize(context.Context, *migrate.Layer) (int64, error) { return 0, nil }

// How implements migrate.Target.
func (t *Target) How(ctx context.Context, layer *migrate.Layer, content *migrate.Content, below migrate.Coming) (migrate.How, int64, error) {
	parent, err := "", error(nil)
	if below.How == "" {
		parent, err = t.parent(layer)
	}
	if err != nil {
		return "", 0, err
	}
	return fill.How(ctx, t.backend, t.opts.Home, layer, content, below, parent)
}

// exists reports whether there is a volume of that name.
func (t *Target) exists(ctx context.Context, name string) (bool, error) {
	_, err := t.backend.Stat(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// identity tells a volume from others that have, or had, its name.
func identity(v cowcommon.Volume) string {
	if uuid := v.Details["UUID"]; uuid != "" {
		return uuid
	}
	return v.Created.UTC().Format(time.RFC3339Nano)
}

// isOwn reports whether this migration has made the volume that has a layer's name.
func (t *Target) isOwn(ctx context.Context, m made) (bool, error) {
	if m.Volume == "" {
		return false, nil
	}
	v, err := t.backend.Stat(ctx, m.Name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && identity(v) == m.Volume, err
}

// Has implements migrate.Target.
func (t *Target) Has(ctx context.Context, item migrate.Item) (bool, error) {
	switch {
	case item.Image != nil:
		return t.hasImage(item.Image)
	case item.Container != nil:
		if _, ok := t.names.saved[containerKey(item.Container)]; !ok {
			return false, nil
		}
		return t.isOwn(ctx, t.names.saved[item.Container.Layer])
	}
	name, ok := t.volume(item.Layer)
	if !ok {
		return false, nil
	}
	if image.IsLayerName(name) { // which says the content
		return t.exists(ctx, name)
	}
	return t.isOwn(ctx, t.names.saved[item.Layer.ID])
}

func (t *Target) hasImage(img *migrate.Image) (bool, error) {
	for _, name := range imageNames(img) {
		there, err := t.images.Get(name)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if there.ID() != img.ID {
			return false, nil
		}
	}
	return true, nil
}

// volume is the name of a layer in the store; ok is false if it has none yet.
func (t *Target) volume(layer *migrate.Layer) (name string, ok bool) {
	t.names.note(layer)
	return t.names.of(layer.ID)
}

// parent is the name of the layer below in the store, "" for a base.
func (t *Target) parent(layer *migrate.Layer) (string, error) {
	if layer.Parent == "" {
		return "", nil
	}
	name, ok := t.names.of(layer.Parent)
	if !ok {
		return "", fault.New(errdefs.ErrNotFound, "the name of layer %s in the store", layer.Parent)
	}
	return name, nil
}

// MakeLayer implements migrate.Target. The name of an image's layer says which content it has. So MakeLayer verifies
// the content before the layer gets the name.
func (t *Target) MakeLayer(ctx context.Context, layer *migrate.Layer, content *migrate.Content, parts io.Reader) error {
	takeover, err := t.open(ctx)
	if err != nil {
		return err
	}
	name, ok := t.volume(layer)
	if !ok {
		return fault.New(errdefs.ErrNotFound, "the name of layer %s in the store", layer.ID)
	}
	parent, err := t.parent(layer)
	if err != nil {
		return err
	}
	if err := t.names.keep(layer.ID); err != nil {
		return err
	}
	v := fill.Volume{Name: name, Parent: parent, Limit: fill.Limit(layer), Partial: takeover.Partial(name), Logger: t.opts.Logger}
	if parts != nil && layer.DiffID != "" {
		if err := takeover.KeepParts(name, parts); err != nil {
			return err
		}
	}
	v.Complete = func(ctx context.Context, volume string, how migrate.How) error {
		if !t.opts.Trust {
			if err := t.compare(ctx, takeover, layer, content, compared{volume: volume, name: name, parent: parent, made: how}); err != nil {
				return err
			}
		}
		return t.identify(ctx, layer, name, volume)
	}
	report, err := fill.Make(ctx, t.backend, content, v)
	if errdefs.IsAlreadyExists(err) {
		if image.IsLayerName(name) {
			return nil // an import was faster
		}
		return errors.Join(err, t.names.remove(layer.ID)) // the next run chooses another name
	}
	if err != nil {
		return errors.Join(err, takeover.DropParts(context.WithoutCancel(ctx), name))
	}
	t.opts.Logger.Debug("made a layer", "layer", name, "how", report.How, "copied", report.Copied)
	if !t.opts.Trust {
		t.verified.Add(name)
	}
	return nil
}

// identify writes down which volume it is that is about to become the layer. The names of images' layers follow from their
// content, also if others make them.
func (t *Target) identify(ctx context.Context, layer *migrate.Layer, name, volume string) error {
	if image.IsLayerName(name) {
		return nil
	}
	v, err := t.backend.Stat(ctx, volume)
	if err != nil {
		return err
	}
	return t.names.identify(layer.ID, identity(v))
}

// MakeImage implements migrate.Target.
func (t *Target) MakeImage(ctx context.Context, img *migrate.Image) error {
	takeover, err := t.open(ctx)
	if err != nil {
		return err
	}
	for _, name := range imageNames(img) {
		if err := t.record(ctx, takeover, name, img); err != nil {
			return err
		}
	}
	return nil
}

// record records an image under a name. It writes down beforehand which record it is, for Undo, unless there is one.
func (t *Target) record(ctx context.Context, takeover *image.Takeover, name string, img *migrate.Image) error {
	if err := image.CheckName(name); err != nil {
		return err
	}
	there, err := t.images.Get(name)
	if err == nil && there.ID() == img.ID {
		return nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	m := made{Key: imageKey(name), Name: img.ID.Encoded(), Imported: time.Now().UTC().Truncate(time.Second)}
	if err := t.names.keepAs(m); err != nil {
		return err
	}
	wrote, err := takeover.Record(ctx, name, t.opts.Origin, img.Config, m.Imported)
	if !wrote {
		err = errors.Join(err, t.names.remove(m.Key))
	}
	return err
}

// forget forgets the names of an image that this migration has recorded.
func (t *Target) forget(ctx context.Context, takeover *image.Takeover, img *migrate.Image) error {
	for _, name := range imageNames(img) {
		m, ok := t.names.saved[imageKey(name)]
		if !ok || m.Name != img.ID.Encoded() {
			continue // it was there before
		}
		if err := takeover.Forget(ctx, name, img.ID, m.Imported); err != nil {
			return err
		}
		if err := t.names.remove(m.Key); err != nil {
			return err
		}
	}
	return nil
}

// MakeContainer implements migrate.Target. A container is its layer here.
func (t *Target) MakeContainer(ctx context.Context, container *migrate.Container) error {
	layer := t.names.saved[container.Layer]
	own, err := t.isOwn(ctx, layer)
	if err != nil {
		return err
	}
	if !own {
		return fault.New(errdefs.ErrNotFound, "the layer of container %s", container.ID)
	}
	return t.names.keepAs(made{Key: containerKey(container), Name: layer.Name})
}

// Commit implements migrate.Target. Everything is there already.
func (t *Target) Commit(context.Context) error { return nil }

// Verify implements migrate.Target.
func (t *Target) Verify(ctx context.Context, item migrate.Item, source migrate.Source) error {
	switch {
	case item.Image != nil, item.Container != nil:
		has, err := t.Has(ctx, item)
		if err == nil && !has {
			err = fault.New(errdefs.ErrDataLoss, "it is not in the store, or another one is")
		}
		return err
	}
	name, _ := t.volume(item.Layer)
	return t.verified.Verify(ctx, name, item.Layer, source, func(content *migrate.Content) error {
		return t.verifyLayer(ctx, name, item.Layer, content)
	})
}

// compared is a volume that is compared with its source.
type compared struct {
	volume       string
	name, parent string // of the layer
	made         migrate.How
}

// compare compares a volume with its source.
func (t *Target) compare(ctx context.Context, takeover *image.Takeover, layer *migrate.Layer, content *migrate.Content, c compared) error {
	v := fill.Compared{Volume: c.volume, Parent: c.parent, Made: c.made}
	return fill.Compare(ctx, t.backend, layer, content, v, func(w io.Writer) error {
		return takeover.WriteTar(ctx, w, c.volume, c.name)
	})
}

func (t *Target) verifyLayer(ctx context.Context, name string, layer *migrate.Layer, content *migrate.Content) error {
	takeover, err := t.open(ctx)
	if err != nil {
		return err
	}
	parent, err := t.parent(layer)
	if err != nil {
		return err
	}
	return t.compare(ctx, takeover, layer, content, compared{volume: name, name: name, parent: parent})
}

// Undo implements migrate.Target. It removes the remains of a run that was cut off.
func (t *Target) Undo(ctx context.Context) error {
	_, err := t.open(ctx)
	return err
}

// Settle implements migrate.Target.
func (t *Target) Settle(ctx context.Context, layer *migrate.Layer) error {
	names, err := t.volumes(layer)
	if err != nil {
		return err
	}
	return cowcommon.Settle(ctx, t.backend, names[0])
}

// CheckSettle implements migrate.Target.
func (t *Target) CheckSettle(ctx context.Context, layers ...*migrate.Layer) error {
	names, err := t.volumes(layers...)
	if err != nil {
		return err
	}
	return cowcommon.CheckSettle(ctx, t.backend, names...)
}

// volumes are the names of layers in the store.
func (t *Target) volumes(layers ...*migrate.Layer) (names []string, err error) {
	for _, layer := range layers {
		name, ok := t.volume(layer)
		if !ok {
			return nil, fault.New(errdefs.ErrNotFound, "the name of layer %s in the store", layer.ID)
		}
		names = append(names, name)
	}
	return names, nil
}

// Remove implements migrate.Target. Returns ErrFailedPrecondition if something else in the store needs the layer.
func (t *Target) Remove(ctx context.Context, item migrate.Item) error {
	takeover, err := t.open(ctx)
	switch {
	case err != nil:
		return err
	case item.Container != nil:
		return t.names.remove(containerKey(item.Container))
	case item.Image != nil:
		return t.forget(ctx, takeover, item.Image)
	}
	name, ok := t.volume(item.Layer)
	if !ok {
		return nil // it was never made
	}
	own := image.IsLayerName(name)
	if !own {
		m := t.names.saved[item.Layer.ID]
		if own, err = t.isOwn(ctx, m); err != nil {
			return err
		}
		name = m.Name
	}
	if own {
		if err := takeover.Remove(ctx, name); err != nil {
			return err
		}
	}
	return t.names.remove(item.Layer.ID)
}
