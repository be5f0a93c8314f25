package toplugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/syncdir"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

const (
	configFile = "config.v2.json"
	maxConfig  = 64 << 20 // bytes
)

var fullID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// madeLayer is the state's record of a layer that was made.
type madeLayer struct {
	Kind   migrate.Kind
	Chain  digest.Digest
	Parent string
}

// note keeps the record of a layer that is about to be made.
func (t *Target) note(layer *migrate.Layer) error {
	data, err := json.Marshal(madeLayer{layer.Kind, layer.ChainID, layer.Parent})
	if err != nil {
		return err
	}
	return atomicfile.Write(t.path("layers", layer.ID), data, 0o600)
}

// noted is the record that note has kept.
func (t *Target) noted(id string) (*madeLayer, error) {
	file := t.path("layers", id)
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	layer := &madeLayer{}
	if err := json.Unmarshal(data, layer); err != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "%s: %w", file, err)
	}
	return layer, nil
}

// chainOf is the chain ID of an image's layer that was made.
func (t *Target) chainOf(id string) (digest.Digest, error) {
	layer, err := t.noted(id)
	if err != nil {
		return "", err
	}
	return layer.Chain, layer.Chain.Validate()
}

func (t *Target) mountDir(container string) string { return t.metadata(mountsDir, container) }

// original is where the configuration of a container is kept that Commit replaces.
func (t *Target) original(container string) string { return t.path("containers", container) }

func (t *Target) hasContainer(c *migrate.Container) (bool, error) {
	kept, err := isThere(t.original(c.ID))
	if err != nil || !kept {
		return false, err
	}
	return isThere(t.mountDir(c.ID))
}

// MakeContainer implements migrate.Target. Returns ErrNotImplemented for a container that is not the engine's own.
func (t *Target) MakeContainer(ctx context.Context, c *migrate.Container) (err error) {
	switch {
	case t.opts.Root != t.opts.SourceRoot:
		return fault.New(errdefs.ErrNotImplemented, "only containers of the engine in %s itself can be the plugin's", t.opts.Root)
	case !fullID.MatchString(c.ID) || c.Dir != path.Join("containers", c.ID):
		return fault.New(errdefs.ErrInvalidArgument, "container ID %q", c.ID)
	}
	if err := t.begin(ctx); err != nil {
		return err
	}
	d, err := makeDir(t.mountDir(c.ID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.discard()) }()
	files, err := t.mountFiles(c)
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := d.write(name, text); err != nil {
			return err
		}
	}
	if err := d.publish(); err != nil {
		return err
	}
	config, err := t.readConfig(c.ID)
	if err != nil {
		return err
	}
	if is := config.driver(); is != t.opts.SourceDriver && is != "" {
		return fault.New(errdefs.ErrFailedPrecondition, "the container is one of driver %s", is)
	}
	return atomicfile.Write(t.original(c.ID), config.text, 0o600)
}

// mountFiles are the files of a container in the layerdb.
func (t *Target) mountFiles(c *migrate.Container) (map[string]string, error) {
	files := map[string]string{"mount-id": c.Layer}
	layer, err := t.noted(c.Layer)
	if err != nil {
		return nil, err
	}
	below := layer.Parent
	if below == "" {
		return files, nil
	}
	if layer, err = t.noted(below); err != nil {
		return nil, err
	}
	if layer.Kind == migrate.InitLayer {
		files["init-id"] = below
		if layer.Parent == "" {
			return files, nil
		}
		if layer, err = t.noted(layer.Parent); err != nil {
			return nil, err
		}
	}
	if layer.Kind != migrate.ImageLayer {
		return nil, fault.New(errdefs.ErrNotImplemented, "the container has more than one layer between it and its image")
	}
	files["parent"] = layer.Chain.String()
	return files, nil
}

// config is the configuration of a container.
type config struct {
	text    []byte
	members map[string]json.RawMessage
	mode    fs.FileMode
}

func (t *Target) containerDir(id string) string { return path.Join("containers", id) }

// readConfig reads the configuration of a container.
func (t *Target) readConfig(id string) (c *config, err error) {
	root, err := rootdir.Open(t.opts.Root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	name := path.Join(t.containerDir(id), configFile)
	f, err := root.OpenFile(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	c = &config{mode: info.Mode().Perm()}
	if c.text, err = root.ReadFile(name, maxConfig); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(c.text, &c.members); err != nil || c.members == nil {
		return nil, fault.New(errdefs.ErrDataLoss, "%s of container %s is no JSON object: %v", configFile, id, err)
	}
	return c, nil
}

// driver is the driver that the container has, "" for none.
func (c *config) driver() string {
	driver := ""
	for name, value := range c.members {
		if strings.EqualFold(name, "Driver") && json.Unmarshal(value, &driver) != nil {
			return "?"
		}
	}
	return driver
}

// withDriver is the text with another driver. All else stays, though not its order.
func (c *config) withDriver(driver string) ([]byte, error) {
	for name := range c.members {
		if strings.EqualFold(name, "Driver") {
			delete(c.members, name)
		}
	}
	value, err := json.Marshal(driver)
	if err != nil {
		return nil, err
	}
	c.members["Driver"] = value
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err = enc.Encode(c.members)
	return b.Bytes(), err
}

// writeConfig replaces the configuration of a container. No symbolic link leads it out of the root.
func (t *Target) writeConfig(id string, text []byte, mode fs.FileMode) (err error) {
	root, err := rootdir.Open(t.opts.Root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	dir, err := root.OpenDir(t.containerDir(id))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return atomicfile.Write(treeat.ProcPath(int(dir.Fd()), configFile), text, mode)
}

func (t *Target) verifyContainer(c *migrate.Container) error {
	data, err := os.ReadFile(filepath.Join(t.mountDir(c.ID), "mount-id"))
	if err == nil && string(data) != c.Layer {
		err = fault.New(errdefs.ErrDataLoss, "it has the layer %q", data)
	}
	return err
}

func (t *Target) removeContainer(c *migrate.Container) error {
	if !fullID.MatchString(c.ID) {
		return nil // it was never made
	}
	if err := removeAll(t.mountDir(c.ID)); err != nil {
		return err
	}
	return removeAll(t.original(c.ID))
}

// containers lists the containers of the migration.
func (t *Target) containers() ([]string, error) { return t.kept("containers") }

// kept lists the names of a directory of the state, without files that a crash has left incomplete.
func (t *Target) kept(dir string) ([]string, error) {
	names, err := list(t.path(dir))
	var whole []string
	for _, name := range names {
		if !strings.HasPrefix(name, ".") {
			whole = append(whole, name)
		}
	}
	return whole, err
}

// Commit implements migrate.Target. Each of its steps can be repeated.
func (t *Target) Commit(ctx context.Context) error {
	if err := t.begin(ctx); err != nil {
		return err
	}
	if err := t.writeNames(); err != nil {
		return err
	}
	if !t.isCommitted() {
		if err := t.publish(); err != nil {
			return err
		}
	}
	ids, err := t.containers()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := t.giveDriver(id); err != nil {
			return err
		}
	}
	return nil
}

// publish moves the metadata to its place.
func (t *Target) publish() error {
	used, err := hasState(t.place())
	if err != nil {
		return err
	}
	if used {
		return fault.New(errdefs.ErrAlreadyExists, "the engine has made images or containers in %s meanwhile", t.place())
	}
	if err := atomicfile.Write(t.path(committing), nil, 0o600); err != nil {
		return err
	}
	if err := removeAll(t.place()); err != nil { // of an engine that has made nothing with it
		return err
	}
	if err := os.Rename(t.staging(), t.place()); err != nil {
		return err
	}
	return syncdir.Sync(filepath.Dir(t.place()))
}

// giveDriver gives a container to the plugin.
func (t *Target) giveDriver(id string) error {
	config, err := t.readConfig(id)
	if err != nil {
		return err
	}
	if config.driver() == t.opts.Plugin {
		return nil
	}
	// The engine may have changed it since the container was made.
	if err := atomicfile.Write(t.original(id), config.text, 0o600); err != nil {
		return err
	}
	text, err := config.withDriver(t.opts.Plugin)
	if err != nil {
		return err
	}
	return t.writeConfig(id, text, config.mode)
}

// Undo implements migrate.Target. Each of its steps can be repeated. Returns ErrFailedPrecondition if the engine runs, or
// has made something with the plugin since.
func (t *Target) Undo(ctx context.Context) error {
	if err := t.idle(ctx); err != nil {
		return err
	}
	if t.isCommitted() {
		if err := t.checkNothingNew(); err != nil {
			return err
		}
	}
	if t.begun() {
		if err := atomicfile.Write(t.path(undoing), nil, 0o600); err != nil {
			return err
		}
	}
	ids, err := t.containers()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := t.restore(id); err != nil {
			return err
		}
	}
	if t.isCommitted() {
		if err := os.Rename(t.place(), t.staging()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := syncdir.Sync(filepath.Dir(t.place())); err != nil {
			return err
		}
	}
	// The metadata goes before the state, by which it is known.
	for _, path := range []string{t.staging(), t.path("containers"), t.path("images"), t.path(committing), t.path("layers")} {
		if err := removeAll(path); err != nil {
			return err
		}
	}
	if open, err := t.isOpen(); !open || err != nil {
		return err
	}
	return t.sweep(ctx)
}

// checkNothingNew returns ErrFailedPrecondition if the engine has made layers, images or containers with the plugin that
// Undo would lose.
func (t *Target) checkNothingNew() error {
	layers, err := t.kept("layers")
	if err != nil {
		return err
	}
	var chains []string
	for _, id := range layers {
		layer, err := t.noted(id)
		if err != nil {
			return err
		}
		if layer.Chain.Validate() == nil {
			chains = append(chains, layer.Chain.Encoded())
		}
	}
	images, err := t.kept("images")
	if err != nil {
		return err
	}
	containers, err := t.containers()
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what, dir string
		own       []string
	}{
		{"container", mountsDir, containers}, {"image", imagesDir, images}, {"layer", layersDir, chains},
	} {
		if err := t.checkNone(c.what, c.dir, c.own); err != nil {
			return err
		}
	}
	return nil
}

func (t *Target) checkNone(what, dir string, own []string) error {
	names, err := list(t.metadata(dir))
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(own))
	for _, name := range own {
		known[name] = true
	}
	for _, name := range names {
		if !known[name] && !strings.HasPrefix(name, ".") {
			return fault.New(errdefs.ErrFailedPrecondition, "the engine has made %s %.12s with plugin %s since: remove it there first", what, name, t.opts.Plugin)
		}
	}
	return nil
}

// restore gives a container the configuration back that Commit has replaced, unless the container is gone.
func (t *Target) restore(id string) error {
	text, err := os.ReadFile(t.original(id))
	if err != nil {
		return err
	}
	config, err := t.readConfig(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if config.driver() != t.opts.Plugin {
		return nil // it was not replaced, or is restored
	}
	return t.writeConfig(id, text, config.mode)
}
