// Package toplugin is the target of a migration that is Docker's graph driver plugin: layers in the plugin's home, and
// the engine's metadata of them in image/PLUGIN. Everything keeps its ID, so the engine finds the same images and
// containers once its storage driver is the plugin.
//
// The metadata is made as a whole beside its place, in image/.PLUGIN-migration. Commit moves it to its place, and gives
// the containers to the plugin by the name of the driver in their configuration.
package toplugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/fill"
)

// Options says which engine it is.
type Options struct {
	Root   string // of the engine, such as "/var/lib/docker", without symbolic links
	Plugin string // its name
	// Home is the home of the driver below that of the plugin, such as "/var/lib/docker/cowshed/btrfs".
	Home string
	// Open opens the driver, and makes its home. The Target closes it.
	Open func(ctx context.Context) (*cowdriver.Driver, error)
	// DriverOptions are those with which Open opens the driver.
	DriverOptions []string
	// Idle returns ErrFailedPrecondition while the engine runs.
	Idle func(ctx context.Context) error
	// State is a directory for files of the target, which is made when it is needed.
	State string
	// SourceRoot is the root of the Docker that the source is, "" if it is another program. SourceDriver is its driver.
	SourceRoot, SourceDriver string

	Trust  bool // layers are not verified before they get their names
	Logger *slog.Logger
}

// Target is an engine with the plugin. It implements migrate.Target.
type Target struct {
	opts Options

	mu       sync.Mutex
	driver   *cowdriver.Driver
	swept    bool // remains of a run that was cut off are gone
	verified fill.Verified
}

var _ migrate.Target = (*Target)(nil)

var pluginName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// New makes a Target. Returns ErrInvalidArgument if the name cannot be that of a plugin, or is that of the source's
// driver. The same goes for symbolic links in the places of the target: the root may be an attacker's.
func New(opts Options) (*Target, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	switch {
	case !pluginName.MatchString(opts.Plugin):
		return nil, fault.New(errdefs.ErrInvalidArgument, "plugin name %q: use letters, digits, - and _", opts.Plugin)
	case opts.Plugin == opts.SourceDriver:
		return nil, fault.New(errdefs.ErrInvalidArgument, "the layers are those of plugin %s already", opts.Plugin)
	}
	t := &Target{opts: opts}
	return t, t.checkLinks()
}

// Close implements migrate.Target.
func (t *Target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.driver == nil {
		return nil
	}
	err := t.driver.Cleanup()
	t.driver = nil
	return err
}

// partialPrefix begins the names of volumes that are not complete.
const partialPrefix = "migrate-partial-"

func newPartial() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return partialPrefix + hex.EncodeToString(b[:])
}

// open opens the driver the first time.
func (t *Target) open(ctx context.Context) (*cowdriver.Driver, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.driver != nil {
		return t.driver, nil
	}
	driver, err := t.opts.Open(ctx)
	if err != nil {
		return nil, err
	}
	t.driver = driver
	return driver, nil
}

// sweep removes volumes that were not completed.
func (t *Target) sweep(ctx context.Context) error {
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	for v, err := range driver.Backend().Volumes(ctx) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(v.Name, partialPrefix) {
			if err := driver.Backend().Remove(ctx, v.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// isOpen reports whether the driver is open, or can be opened without making its home.
func (t *Target) isOpen() (bool, error) {
	t.mu.Lock()
	open := t.driver != nil
	t.mu.Unlock()
	if open {
		return true, nil
	}
	_, err := os.Stat(t.opts.Home)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// exists reports whether there is a volume of that name.
func (t *Target) exists(ctx context.Context, name string) (bool, error) {
	if open, err := t.isOpen(); !open || err != nil {
		return false, err
	}
	driver, err := t.open(ctx)
	if err != nil {
		return false, err
	}
	_, err = driver.Backend().Stat(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Check implements migrate.Target.
func (t *Target) Check(ctx context.Context, source migrate.Source, inv *migrate.Inventory) error {
	if err := t.idle(ctx); err != nil {
		return err
	}
	if !t.begun() {
		if err := t.checkFree(ctx); err != nil {
			return err
		}
	}
	has := func(layer *migrate.Layer) (bool, error) { return t.exists(ctx, layer.ID) }
	return fill.CheckSpace(ctx, t.hasRoom, inv, has, migrate.NewForecast(source, t.How))
}

// hasRoom returns an ENOSPC error if the volumes have less space than is needed.
func (t *Target) hasRoom(ctx context.Context, needed uint64) error {
	open, err := t.isOpen()
	if err != nil {
		return err
	}
	if !open {
		return fill.HasRoomBy("the plugin's dataset", t.opts.Home, t.freeNew)(ctx, needed)
	}
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	return fill.HasRoom(driver.Backend(), t.opts.Home)(ctx, needed)
}

// freeNew is cowcommon.Spacer.Free for a home that is not there yet.
func (t *Target) freeNew(ctx context.Context) (uint64, error) {
	driver, ok := cowdriver.Lookup(filepath.Base(t.opts.Home))
	if !ok || driver.Free == nil {
		return 0, fault.New(errdefs.ErrNotImplemented, "no driver measures space for %s", t.opts.Home)
	}
	return driver.Free(ctx, t.opts.Home, t.opts.DriverOptions)
}

// idle returns ErrFailedPrecondition while the engine or the plugin runs.
func (t *Target) idle(ctx context.Context) error {
	t.mu.Lock()
	open := t.driver != nil
	t.mu.Unlock()
	if open {
		return nil // it was idle when this migration opened it
	}
	if err := t.opts.Idle(ctx); err != nil {
		return err
	}
	return checkHome(t.opts.Home)
}

// checkFree returns ErrAlreadyExists if the place has images or layers that are not of this migration.
func (t *Target) checkFree(ctx context.Context) error {
	half, err := isThere(t.path(undoing))
	if err != nil {
		return err
	}
	if half {
		return fault.New(errdefs.ErrFailedPrecondition, "an undo was interrupted: run undo again")
	}
	staged, err := isThere(t.staging())
	if err != nil {
		return err
	}
	if staged {
		return fault.New(errdefs.ErrAlreadyExists, "%s exists already, and does not belong to this migration: remove it", t.staging())
	}
	used, err := hasState(t.place())
	if err != nil {
		return err
	}
	if used {
		return fault.New(errdefs.ErrAlreadyExists, "the engine has images or containers of plugin %s in %s: remove them, or choose another --plugin-name", t.opts.Plugin, t.place())
	}
	if open, err := t.isOpen(); !open || err != nil {
		return err
	}
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	for v, err := range driver.Backend().Volumes(ctx) {
		if err != nil {
			return err
		}
		if !strings.HasPrefix(v.Name, partialPrefix) {
			return fault.New(errdefs.ErrAlreadyExists, "plugin %s has layers in %s already, such as %s: remove them, or choose another --plugin-name", t.opts.Plugin, t.opts.Home, v.Name)
		}
	}
	return nil
}

// BlobSize implements migrate.Target. It makes no blobs.
func (*Target) BlobSize(context.Context, *migrate.Layer) (int64, error) { return 0, nil }

// How implements migrate.Target.
func (t *Target) How(ctx context.Context, layer *migrate.Layer, content *migrate.Content, below migrate.Coming) (migrate.How, int64, error) {
	open, err := t.isOpen()
	if err != nil {
		return "", 0, err
	}
	if !open {
		home := t.opts.Home
		if driver, ok := cowdriver.Lookup(filepath.Base(home)); ok && driver.Free != nil {
			home = "" // it does not tell where the volumes will be
		}
		return fill.HowTo(ctx, home, layer, content, below, t.checkAdoptNew)
	}
	driver, err := t.open(ctx)
	if err != nil {
		return "", 0, err
	}
	parent := ""
	if below.How == "" {
		parent = layer.Parent
	}
	return fill.How(ctx, driver.Backend(), t.opts.Home, layer, content, below, parent)
}

// checkAdoptNew is cowcommon.Adopter.CheckAdopt for a home that is not there yet.
func (t *Target) checkAdoptNew(ctx context.Context, source, planned string) error {
	driver, ok := cowdriver.Lookup(filepath.Base(t.opts.Home))
	if !ok || driver.CheckAdopt == nil {
		return fault.New(errdefs.ErrNotImplemented, "no driver for %s", t.opts.Home)
	}
	return driver.CheckAdopt(ctx, t.opts.Home, t.opts.DriverOptions, source, planned)
}

// Has implements migrate.Target.
func (t *Target) Has(ctx context.Context, item migrate.Item) (bool, error) {
	switch {
	case item.Image != nil:
		return t.hasImage(item.Image)
	case item.Container != nil:
		return t.hasContainer(item.Container)
	}
	has, err := t.exists(ctx, item.Layer.ID)
	if err != nil || !has || item.Layer.Kind != migrate.ImageLayer {
		return has, err
	}
	return isThere(t.layerDir(item.Layer))
}

// MakeLayer implements migrate.Target.
func (t *Target) MakeLayer(ctx context.Context, layer *migrate.Layer, content *migrate.Content, parts io.Reader) (err error) {
	if err := t.begin(ctx); err != nil {
		return err
	}
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	// Undo knows by it which layers are of the migration.
	if err := t.note(layer); err != nil {
		return err
	}
	v := fill.Volume{Name: layer.ID, Parent: layer.Parent, Limit: fill.Limit(layer), Partial: newPartial(), Logger: t.opts.Logger}
	metadata := ""
	if !t.opts.Trust {
		v.Complete = func(ctx context.Context, volume string, how migrate.How) error {
			return t.compare(ctx, driver, layer, content, compared{volume, metadata, how})
		}
	}
	if layer.Kind != migrate.ImageLayer {
		return t.fill(ctx, driver, layer, content, v)
	}
	meta, err := t.newLayerDir(layer, parts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, meta.discard()) }()
	metadata = meta.dir
	if err := t.copyDistribution(layer); err != nil {
		return err
	}
	if err := t.fill(ctx, driver, layer, content, v); err != nil {
		return err
	}
	if err := meta.complete(ctx, driver, layer); err != nil {
		return errors.Join(err, t.Remove(context.WithoutCancel(ctx), migrate.Item{Layer: layer}))
	}
	return nil
}

// fill makes the volume of a layer.
func (t *Target) fill(ctx context.Context, driver *cowdriver.Driver, layer *migrate.Layer, content *migrate.Content, v fill.Volume) error {
	report, err := fill.Make(ctx, driver.Backend(), content, v)
	if errdefs.IsAlreadyExists(err) {
		return nil // a run that was cut off has made it
	}
	if err != nil {
		return err
	}
	t.opts.Logger.Debug("made a layer", "layer", layer.ID, "how", report.How, "copied", report.Copied)
	if v.Complete != nil {
		t.verified.Add(layer.ID)
	}
	return nil
}

// compared is a volume that is compared with its source.
type compared struct {
	volume   string
	metadata string // the directory of an image's layer
	made     migrate.How
}

// compare compares a volume with its source.
func (t *Target) compare(ctx context.Context, driver *cowdriver.Driver, layer *migrate.Layer, content *migrate.Content, c compared) error {
	v := fill.Compared{Volume: c.volume, Parent: layer.Parent, Made: c.made}
	return fill.Compare(ctx, driver.Backend(), layer, content, v, func(w io.Writer) error {
		return writeTar(ctx, w, driver, c.volume, c.metadata)
	})
}

// writeTar reassembles a layer's tar from the parts in dir and the files of a volume. Returns ErrNotFound if there are no
// parts.
func writeTar(ctx context.Context, w io.Writer, driver *cowdriver.Driver, volume, dir string) (err error) {
	parts, err := openParts(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parts.Close()) }()
	files, err := driver.WithContext(ctx).DiffGetter(volume)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	return image.JoinParts(ctx, w, files, parts)
}

// Verify implements migrate.Target.
func (t *Target) Verify(ctx context.Context, item migrate.Item, source migrate.Source) error {
	switch {
	case item.Image != nil:
		return t.verifyImage(item.Image)
	case item.Container != nil:
		return t.verifyContainer(item.Container)
	}
	return t.verified.Verify(ctx, item.Layer.ID, item.Layer, source, func(content *migrate.Content) error {
		return t.verifyLayer(ctx, item.Layer, content)
	})
}

func (t *Target) verifyLayer(ctx context.Context, layer *migrate.Layer, content *migrate.Content) error {
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	c := compared{volume: layer.ID}
	if layer.Kind == migrate.ImageLayer {
		c.metadata = t.layerDir(layer)
	}
	return t.compare(ctx, driver, layer, content, c)
}

// Settle implements migrate.Target.
func (t *Target) Settle(ctx context.Context, layer *migrate.Layer) error {
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	return cowcommon.Settle(ctx, driver.Backend(), layer.ID)
}

// CheckSettle implements migrate.Target.
func (t *Target) CheckSettle(ctx context.Context, layers ...*migrate.Layer) error {
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	names := make([]string, len(layers))
	for i, layer := range layers {
		names[i] = layer.ID
	}
	return cowcommon.CheckSettle(ctx, driver.Backend(), names...)
}

// Remove implements migrate.Target.
func (t *Target) Remove(ctx context.Context, item migrate.Item) error {
	switch {
	case item.Image != nil:
		return t.removeImage(item.Image)
	case item.Container != nil:
		return t.removeContainer(item.Container)
	}
	if item.Layer.Kind == migrate.ImageLayer {
		if err := removeAll(t.layerDir(item.Layer)); err != nil {
			return err
		}
	}
	driver, err := t.open(ctx)
	if err != nil {
		return err
	}
	return driver.Backend().Remove(ctx, item.Layer.ID)
}

// path is the path of a file of the target's state.
func (t *Target) path(elem ...string) string {
	return filepath.Join(append([]string{t.opts.State}, elem...)...)
}
