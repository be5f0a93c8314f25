package toplugin

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/syncdir"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Names in the engine's metadata.
const (
	layersDir  = "layerdb/sha256"
	mountsDir  = "layerdb/mounts"
	imagesDir  = "imagedb/content/sha256"
	moreDir    = "imagedb/metadata/sha256"
	namesFile  = "repositories.json"
	byDiffID   = "distribution/v2metadata-by-diffid/sha256"
	byDigest   = "distribution/diffid-by-digest/sha256"
	partsFile  = "tar-split.json.gz"
	newPrefix  = ".new-" // of directories that are not complete
	maxRecords = 1 << 20 // bytes of a file of distribution
	maxMore    = 4 << 10 // bytes of a file of an image's metadata
)

// place is where the engine looks for the metadata.
func (t *Target) place() string { return filepath.Join(t.opts.Root, "image", t.opts.Plugin) }

// staging is where it is until Commit.
func (t *Target) staging() string {
	return filepath.Join(t.opts.Root, "image", "."+t.opts.Plugin+"-migration")
}

// checkLinks returns ErrInvalidArgument if there is a symbolic link in the places that the target writes to.
func (t *Target) checkLinks() error {
	for _, dir := range []string{filepath.Dir(t.place()), filepath.Join(t.opts.Root, t.opts.Plugin), t.opts.Home, filepath.Dir(t.opts.State)} {
		if info, err := os.Lstat(dir); err == nil && !info.IsDir() {
			return fault.New(errdefs.ErrInvalidArgument, "%s is no directory", dir)
		}
	}
	for _, top := range []string{t.staging(), t.place(), t.opts.State} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.Type()&fs.ModeSymlink != 0 {
				err = fault.New(errdefs.ErrInvalidArgument, "%s is a symbolic link", path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// committing is a file of the state that is there once the metadata may be in its place.
const committing = "committing"

// metadata is where the metadata is now.
func (t *Target) metadata(elem ...string) string {
	dir := t.staging()
	if t.isCommitted() {
		dir = t.place()
	}
	return filepath.Join(append([]string{dir}, elem...)...)
}

// isCommitted reports whether the metadata is in its place.
func (t *Target) isCommitted() bool {
	marked, err := isThere(t.path(committing))
	if err != nil || !marked {
		return false
	}
	staged, err := isThere(t.staging())
	return err == nil && !staged
}

// begun reports whether something was made by this migration.
func (t *Target) begun() bool {
	there, err := isThere(t.path("layers"))
	return err == nil && there
}

// begin prepares the making of things. It removes the remains of a run that was cut off.
func (t *Target) begin(ctx context.Context) error {
	if t.begun() {
		return t.sweepOnce(ctx)
	}
	for _, dir := range []string{"images", "containers", "layers"} {
		if err := os.MkdirAll(t.path(dir), 0o700); err != nil {
			return err
		}
	}
	return t.sweepOnce(ctx)
}

// sweepOnce is sweep, once, and makes the directories of the metadata.
func (t *Target) sweepOnce(ctx context.Context) error {
	t.mu.Lock()
	swept := t.swept
	t.swept = true
	t.mu.Unlock()
	if swept {
		return nil
	}
	if err := t.sweep(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(t.staging()), 0o700); err != nil {
		return err
	}
	for _, dir := range []string{layersDir, mountsDir, "layerdb/tmp", imagesDir, moreDir, byDiffID, byDigest} {
		if err := os.MkdirAll(t.metadata(dir), 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{layersDir, mountsDir} {
		names, err := list(t.metadata(dir))
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasPrefix(name, newPrefix) {
				if err := os.RemoveAll(t.metadata(dir, name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// hasState reports whether a directory of metadata has layers, images or containers. Engines make empty directories.
func hasState(dir string) (bool, error) {
	for _, sub := range []string{layersDir, mountsDir, imagesDir} {
		names, err := list(filepath.Join(dir, sub))
		if len(names) > 0 || err != nil {
			return len(names) > 0, err
		}
	}
	return false, nil
}

// list lists the names in a directory, which may be missing.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func isThere(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// removeAll removes a name, durably.
func removeAll(path string) error {
	there, err := isThere(path)
	if err != nil || !there {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return syncdir.Sync(filepath.Dir(path))
}

// newDir is a directory of small files that gets its name when it is complete.
type newDir struct {
	dir, final string
}

func makeDir(final string) (*newDir, error) {
	dir, err := os.MkdirTemp(filepath.Dir(final), newPrefix)
	if err != nil {
		return nil, err
	}
	return &newDir{dir, final}, os.Chmod(dir, 0o755)
}

func (d *newDir) write(name, text string) error {
	return atomicfile.Write(filepath.Join(d.dir, name), []byte(text), 0o644)
}

// publish gives the directory its name, unless there is one already.
func (d *newDir) publish() error {
	there, err := isThere(d.final)
	if err != nil || there {
		return err
	}
	if err := os.Rename(d.dir, d.final); err != nil {
		return err
	}
	return syncdir.Sync(filepath.Dir(d.final))
}

// discard removes the directory if it has no name of its own.
func (d *newDir) discard() error { return os.RemoveAll(d.dir) }

// layerDir is the directory of an image's layer.
func (t *Target) layerDir(layer *migrate.Layer) string {
	return t.metadata(layersDir, layer.ChainID.Encoded())
}

// newLayerMetadata is the metadata of a layer that is being made.
type newLayerMetadata struct{ *newDir }

// newLayerDir writes the metadata of a layer, except its size.
func (t *Target) newLayerDir(layer *migrate.Layer, parts io.Reader) (_ *newLayerMetadata, err error) {
	if err := layer.ChainID.Validate(); err != nil {
		return nil, fault.New(errdefs.ErrInvalidArgument, "layer %s has no chain ID", layer.ID)
	}
	d, err := makeDir(t.layerDir(layer))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.discard())
		}
	}()
	files := map[string]string{"cache-id": layer.ID, "diff": layer.DiffID.String()}
	if layer.Parent != "" {
		parent, err := t.chainOf(layer.Parent)
		if err != nil {
			return nil, err
		}
		files["parent"] = parent.String()
	}
	for name, text := range files {
		if err := d.write(name, text); err != nil {
			return nil, err
		}
	}
	if parts != nil {
		if err := writeParts(d.dir, parts); err != nil {
			return nil, err
		}
	}
	return &newLayerMetadata{d}, nil
}

// complete gives the metadata of a layer that is there its place.
func (m *newLayerMetadata) complete(ctx context.Context, driver *cowdriver.Driver, layer *migrate.Layer) error {
	size := layer.Size
	if size < 0 {
		var err error
		if size, err = driver.WithContext(ctx).DiffSize(layer.ID, layer.Parent); err != nil {
			return err
		}
	}
	if err := m.write("size", strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	return m.publish()
}

func writeParts(dir string, parts io.Reader) error {
	f, err := atomicfile.Create(dir, newPrefix)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	_, err = io.Copy(z, image.ShortLines(parts))
	if err := errors.Join(err, z.Close(), f.Chmod(0o644)); err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit(filepath.Join(dir, partsFile))
}

// parts are the uncompressed parts of a tar.
type parts struct {
	*gzip.Reader
	file *os.File
}

// openParts opens the parts of a layer's tar. Returns ErrNotFound if there are none.
func openParts(dir string) (*parts, error) {
	f, err := os.Open(filepath.Join(dir, partsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(errdefs.ErrNotFound, "parts of a tar in %s", dir)
	}
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(fault.As(errdefs.ErrDataLoss, err), f.Close())
	}
	return &parts{z, f}, nil
}

// Close closes the parts.
func (p *parts) Close() error { return errors.Join(p.Reader.Close(), p.file.Close()) }

// copyDistribution copies the engine's records of registries that have the layer.
func (t *Target) copyDistribution(layer *migrate.Layer) error {
	if t.opts.SourceRoot == "" {
		return nil
	}
	data, err := t.readSource(path.Join(byDiffID, layer.DiffID.Encoded()), maxRecords)
	if data == nil || err != nil {
		return err
	}
	var records []struct{ Digest digest.Digest }
	if err := json.Unmarshal(data, &records); err != nil {
		t.opts.Logger.Info("the engine's record of registries that have a layer is damaged, and left out", "layer", layer.ID, "error", err)
		return nil
	}
	if err := atomicfile.Write(t.metadata(byDiffID, layer.DiffID.Encoded()), data, 0o644); err != nil {
		return err
	}
	for _, record := range records {
		if record.Digest.Validate() != nil || record.Digest.Algorithm() != digest.SHA256 {
			continue
		}
		if err := atomicfile.Write(t.metadata(byDigest, record.Digest.Encoded()), []byte(layer.DiffID), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readSource reads a file of the source's metadata. It returns nil if there is none.
func (t *Target) readSource(name string, max int64) (_ []byte, err error) {
	root, err := rootdir.Open(t.opts.SourceRoot)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	data, err := root.ReadFile(path.Join("image", t.opts.SourceDriver, name), max)
	if errors.Is(err, fs.ErrNotExist) || errdefs.IsResourceExhausted(err) || errdefs.IsInvalidArgument(err) {
		return nil, nil
	}
	return data, err
}

// imageNames are the names of an image, kept in the state until Commit.
type imageNames struct{ Names, Digests []string }

func (t *Target) imageFile(id digest.Digest) string { return t.metadata(imagesDir, id.Encoded()) }

func (t *Target) hasImage(img *migrate.Image) (bool, error) {
	named, err := isThere(t.path("images", img.ID.Encoded()))
	if err != nil || !named {
		return false, err
	}
	return isThere(t.imageFile(img.ID))
}

// MakeImage implements migrate.Target.
func (t *Target) MakeImage(ctx context.Context, img *migrate.Image) error {
	if digest.FromBytes(img.Config) != img.ID {
		return fault.New(errdefs.ErrDataLoss, "the configuration of image %s has another digest", img.ID)
	}
	if err := t.begin(ctx); err != nil {
		return err
	}
	names, err := json.Marshal(imageNames{img.Names, img.Digests})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(t.path("images", img.ID.Encoded()), names, 0o600); err != nil {
		return err
	}
	if err := t.copyMore(img.ID); err != nil {
		return err
	}
	return atomicfile.Write(t.imageFile(img.ID), img.Config, 0o600)
}

// copyMore copies the engine's own notes on an image: when it was used, and the image that it was built from.
func (t *Target) copyMore(id digest.Digest) error {
	if t.opts.SourceRoot == "" {
		return nil
	}
	for _, name := range []string{"lastUpdated", "parent"} {
		data, err := t.readSource(path.Join(moreDir, id.Encoded(), name), maxMore)
		if err != nil {
			return err
		}
		if data == nil {
			continue
		}
		if err := os.MkdirAll(t.metadata(moreDir, id.Encoded()), 0o755); err != nil {
			return err
		}
		if err := atomicfile.Write(t.metadata(moreDir, id.Encoded(), name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (t *Target) verifyImage(img *migrate.Image) error {
	data, err := os.ReadFile(t.imageFile(img.ID))
	if err == nil && digest.FromBytes(data) != img.ID {
		err = fault.New(errdefs.ErrDataLoss, "the configuration has another digest")
	}
	return err
}

func (t *Target) removeImage(img *migrate.Image) error {
	for _, path := range []string{t.imageFile(img.ID), t.metadata(moreDir, img.ID.Encoded()), t.path("images", img.ID.Encoded())} {
		if err := removeAll(path); err != nil {
			return err
		}
	}
	return nil
}

// repositories are the names of images as the engine keeps them: by repository and reference in familiar form.
type repositories struct {
	Repositories map[string]map[string]digest.Digest
}

// writeNames adds the names of the migration's images to those of the engine.
func (t *Target) writeNames() error {
	all := repositories{Repositories: make(map[string]map[string]digest.Digest)}
	data, err := os.ReadFile(t.metadata(namesFile))
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ids, err := t.kept("images")
	if err != nil {
		return err
	}
	for _, id := range ids {
		data, err := os.ReadFile(t.path("images", id))
		if err != nil {
			return err
		}
		var names imageNames
		if err := json.Unmarshal(data, &names); err != nil {
			return fault.New(errdefs.ErrDataLoss, "%s: %w", t.path("images", id), err)
		}
		for _, name := range append(names.Names, names.Digests...) {
			if err := all.add(name, digest.NewDigestFromEncoded(digest.SHA256, id)); err != nil {
				return err
			}
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return atomicfile.Write(t.metadata(namesFile), text, 0o600)
}

// add adds a name, unless another image has it.
func (r *repositories) add(name string, id digest.Digest) error {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return fault.New(errdefs.ErrInvalidArgument, "image name %q: %w", name, err)
	}
	repository := reference.FamiliarName(ref)
	if r.Repositories == nil {
		r.Repositories = make(map[string]map[string]digest.Digest)
	}
	if r.Repositories[repository] == nil {
		r.Repositories[repository] = make(map[string]digest.Digest)
	}
	if _, taken := r.Repositories[repository][reference.FamiliarString(ref)]; !taken {
		r.Repositories[repository][reference.FamiliarString(ref)] = id
	}
	return nil
}
