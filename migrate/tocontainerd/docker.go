package tocontainerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/syncdir"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Docker 29 finds a container by its directory in DockerRoot, if config.v2.json there names its snapshotter as the
// driver. It needs the snapshot and the lease with the container's ID. For "docker start", "diff" and "ps" that is all.
// "docker commit" reads the manifest that ImageManifest describes. Image is the digest of the image's target, which is
// the manifest too. The engine completes the other fields when it loads a configuration of an older version.
//
// MakeContainer writes the changed fields to a file in StateDir. Commit keeps the files of the container there, and then
// changes the one. Undo puts both back.

const (
	containersDir  = "containers"
	configName     = "config.v2.json"
	hostConfigName = "hostconfig.json" // Docker 29 rewrites it too

	stagedSuffix   = ".new.json"
	originalPrefix = ".old."

	// maxConfig bounds the memory for the configuration of a container.
	maxConfig = 16 << 20
)

// change has the fields of config.v2.json that Commit sets.
type change struct {
	Driver        string
	Image         digest.Digest
	ImageManifest *ocispec.Descriptor
}

func (t *Target) stateFile(id, suffix string) string {
	return filepath.Join(t.opts.StateDir, containersDir, id+suffix)
}

// stage notes how the configuration of a container is to change.
func (t *Target) stage(ctx context.Context, c *migrate.Container) error {
	if _, err := t.containerSnapshot(ctx, c); err != nil {
		return err
	}
	if err := t.checkConfig(c.ID); err != nil {
		return err
	}
	to, err := t.changeOf(ctx, c)
	if err != nil {
		return err
	}
	data, err := json.Marshal(to)
	if err != nil {
		return err
	}
	if err := t.makeStateDir(); err != nil {
		return err
	}
	return atomicfile.Write(t.stateFile(c.ID, stagedSuffix), data, 0o600)
}

// checkConfig returns an error if the configuration of a container cannot be read.
func (t *Target) checkConfig(id string) error {
	dir, err := t.openContainer(id)
	if err != nil {
		return err
	}
	_, err = readConfig(dir)
	return errors.Join(err, dir.Close())
}

// changeOf is how the configuration of a container is to change. A container without an image has no manifest.
func (t *Target) changeOf(ctx context.Context, c *migrate.Container) (change, error) {
	to := change{Driver: t.opts.Snapshotter}
	if c.Image == "" {
		return to, nil
	}
	manifest, err := t.manifestOf(ctx, c.Image)
	if err != nil {
		return change{}, err
	}
	to.Image, to.ImageManifest = manifest.Digest, &manifest
	return to, nil
}

func (t *Target) makeStateDir() error {
	dir := filepath.Join(t.opts.StateDir, containersDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncdir.Sync(filepath.Dir(dir))
}

// staged reads the note of a container. Returns errdefs.ErrNotFound if there is none.
func (t *Target) staged(id string) (change, error) {
	data, err := os.ReadFile(t.stateFile(id, stagedSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return change{}, fault.New(errdefs.ErrNotFound, "the configuration of container %s is not prepared", id)
	}
	if err != nil {
		return change{}, err
	}
	var to change
	if err := json.Unmarshal(data, &to); err != nil {
		return change{}, fault.New(errdefs.ErrDataLoss, "%s: %w", t.stateFile(id, stagedSuffix), err)
	}
	return to, nil
}

// unstage forgets a container.
func (t *Target) unstage(id string) error {
	for _, suffix := range []string{stagedSuffix, originalPrefix + configName, originalPrefix + hostConfigName} {
		if err := os.Remove(t.stateFile(id, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// verifyStaged returns errdefs.ErrDataLoss if a container would not get the image of its source.
func (t *Target) verifyStaged(ctx context.Context, c *migrate.Container) error {
	is, err := t.staged(c.ID)
	if err != nil {
		return err
	}
	want, err := t.changeOf(ctx, c)
	if err != nil {
		return err
	}
	if is.Driver != want.Driver || is.Image != want.Image {
		return fault.New(errdefs.ErrDataLoss, "its image is %s and not %s", is.Image, want.Image)
	}
	return nil
}

// stagedIDs lists the containers of Commit and Undo, sorted.
func (t *Target) stagedIDs(suffix string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(t.opts.StateDir, containersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	for _, entry := range entries {
		if id, ok := strings.CutSuffix(entry.Name(), suffix); ok && containerID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids, err
}

var errNoRoot = fault.New(errdefs.ErrInvalidArgument, "the root of the Docker Engine is needed for containers in namespace %s", Moby)

// openContainer opens the directory of a container in DockerRoot. Returns errdefs.ErrNotFound if there is none.
func (t *Target) openContainer(id string) (*rootdir.Dir, error) {
	if t.opts.DockerRoot == "" {
		return nil, errNoRoot
	}
	root, err := rootdir.Open(t.opts.DockerRoot)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	dir, err := root.Sub(containersDir + "/" + id)
	return dir, errors.Join(rootdir.NotFound(err), root.Close())
}

// readConfig reads config.v2.json, and keeps fields that are unknown here.
func readConfig(dir *rootdir.Dir) (map[string]json.RawMessage, error) {
	data, err := dir.ReadFile(configName, maxConfig)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	config := make(map[string]json.RawMessage)
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "%s: %w", dir.Join(configName), err)
	}
	return config, nil
}

// install changes the configuration of a container, after its files have been kept.
func (t *Target) install(id string) (err error) {
	to, err := t.staged(id)
	if err != nil {
		return err
	}
	dir, err := t.openContainer(id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	config, err := readConfig(dir)
	if err != nil {
		return err
	}
	if to.isIn(config) {
		return nil // by a Commit before, and the engine may have changed it since
	}
	for _, name := range []string{hostConfigName, configName} {
		if err := t.keep(dir, id, name); err != nil {
			return err
		}
	}
	changed, err := to.apply(config)
	if err != nil {
		return err
	}
	return replace(dir, configName, changed)
}

// apply returns a configuration with the changes.
func (c change) apply(config map[string]json.RawMessage) ([]byte, error) {
	fields := map[string]any{"Driver": c.Driver, "ImageManifest": c.ImageManifest}
	if c.Image != "" {
		fields["Image"] = c.Image
	}
	config = maps.Clone(config)
	for name, value := range fields {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		config[name] = data
	}
	return json.Marshal(config)
}

// keep copies a file of a container to StateDir. A file that does not exist is not kept.
func (t *Target) keep(dir *rootdir.Dir, id, name string) error {
	data, err := dir.ReadFile(name, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return atomicfile.Write(t.stateFile(id, originalPrefix+name), data, 0o600)
}

// restore puts the files of a container back, unless its driver is no longer ours: an older engine has used it since, and
// the files that were kept are older than that.
func (t *Target) restore(id string) (err error) {
	dir, err := t.openContainer(id)
	if errdefs.IsNotFound(err) {
		t.opts.Logger.Warn("a container was removed since, and its configuration is not put back", "container", id)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	ours, err := t.isInstalled(dir, id)
	if err != nil {
		return err
	}
	if !ours {
		t.opts.Logger.Warn("a container is another driver's by now, and its configuration is not put back", "container", id)
		return nil
	}
	// The one with the driver is last: should this be cut off, it is repeated.
	for _, name := range []string{hostConfigName, configName} {
		data, err := os.ReadFile(t.stateFile(id, originalPrefix+name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = replace(dir, name, data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isInstalled reports whether a container's configuration is as Commit has changed it. Other fields may have changed since.
func (t *Target) isInstalled(dir *rootdir.Dir, id string) (bool, error) {
	to, err := t.staged(id)
	if errdefs.IsNotFound(err) {
		to, err = change{Driver: t.opts.Snapshotter}, nil
	}
	if err != nil {
		return false, err
	}
	config, err := readConfig(dir)
	if errdefs.IsNotFound(err) {
		return false, nil // it is being removed
	}
	return err == nil && to.isIn(config), err
}

// isIn reports whether a configuration has the driver already.
func (c change) isIn(config map[string]json.RawMessage) bool {
	var driver string
	return json.Unmarshal(config["Driver"], &driver) == nil && driver == c.Driver
}

// replace gives a file of a container another content, and keeps its mode. An attacker who can write to the directory of
// a container is root.
func replace(dir *rootdir.Dir, name string, data []byte) error {
	mode := fs.FileMode(0o600)
	if f, err := dir.OpenFile(name); err == nil {
		info, err := f.Stat()
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		mode = info.Mode().Perm()
	}
	return atomicfile.Write(dir.Join(name), data, mode)
}

// Commit implements migrate.Target. In namespace Moby it changes the configurations of the containers, and tells Docker the
// parents of images.
func (t *Target) Commit(ctx context.Context) error {
	ctx = t.in(ctx)
	if err := t.keepNeeds(); err != nil {
		return err
	}
	if t.moby() {
		if err := t.tellParents(ctx); err != nil {
			return err
		}
		ids, err := t.stagedIDs(stagedSuffix)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := t.install(id); err != nil {
				return fmt.Errorf("container %s: %w", id, err)
			}
		}
	}
	return t.endLeases(ctx)
}

// Undo implements migrate.Target. Returns errdefs.ErrFailedPrecondition if the Docker Engine runs.
func (t *Target) Undo(ctx context.Context) error {
	ctx = t.in(ctx)
	t.undoing = true
	if err := t.idle(ctx); err != nil {
		return err
	}
	if t.moby() {
		ids, err := t.stagedIDs(originalPrefix + configName)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := t.restore(id); err != nil {
				return fmt.Errorf("container %s: %w", id, err)
			}
		}
	}
	return t.endLeases(ctx)
}
