package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/stream"
)

// ImportOptions says how an image is imported.
type ImportOptions struct {
	Name     string   // "" stands for the source's
	Replace  bool     // an image of that name may be there
	Progress Progress // nil: no one is told
}

// Imported is the result of an import.
type Imported struct {
	Image  *Image
	Made   []string // layers that were made, base first
	Reused []string // layers that were there
}

// Import makes the missing layers of an image, and then its record. Either all of it is done, or nothing: an import
// that fails removes the layers that it made. A layer has a name of its own until it is complete. The next import
// removes incomplete layers that a crash has left.
//
// Returns errdefs.ErrAlreadyExists if there is another image of that name. Returns errdefs.ErrDataLoss if content has
// another digest than it should. Returns errdefs.ErrInvalidArgument if the name is invalid.
func (s *Store) Import(ctx context.Context, src *Source, opts ImportOptions) (*Imported, error) {
	name := opts.Name
	if name == "" {
		name = src.Name
	}
	if name == "" {
		return nil, fault.New(errdefs.ErrInvalidArgument, "import %s: the source does not name the image, so a name must be given", src.Origin)
	}
	if err := CheckName(name); err != nil {
		return nil, fmt.Errorf("import %s: give it another name: %w", src.Origin, err)
	}
	lock, alone, err := s.lockShared(ctx)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", src.Origin, err)
	}
	im := &importer{store: s, src: src, name: name, opts: opts, progress: orNoProgress(opts.Progress)}
	if alone {
		err = errors.Join(s.sweep(ctx), lock.Shared(ctx))
	}
	if err == nil {
		err = im.run(ctx)
	}
	if err != nil {
		err = errors.Join(err, im.undo(context.WithoutCancel(ctx), lock))
	} else if im.replaced != nil {
		err = im.removeReplaced(ctx, lock)
	}
	if err := errors.Join(err, lock.Close()); err != nil {
		return nil, fmt.Errorf("import %s: %w", src.Origin, err)
	}
	return &im.done, nil
}

type importer struct {
	store    *Store
	src      *Source
	name     string
	opts     ImportOptions
	progress Progress
	replaced *Image // the image that had the name before; nil: none, or the same one
	done     Imported
}

func (im *importer) run(ctx context.Context) error {
	if im.src.config == nil {
		return im.runUndescribed(ctx)
	}
	image, err := im.image(im.src.config)
	if err != nil {
		return err
	}
	if err := im.checkTaken(image); err != nil {
		return err
	}
	parent := ""
	for i, id := range image.Layers() {
		if err := im.layer(ctx, i, id, parent, image.DiffIDs()[i]); err != nil {
			return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(im.src.layers), image.DiffIDs()[i], err)
		}
		parent = id
	}
	return im.finish(image)
}

// runUndescribed imports an image whose uppermost layer has a digest that is not known before it was read.
func (im *importer) runUndescribed(ctx context.Context) error {
	diffIDs, err := im.makeBelow(ctx)
	if err != nil {
		return err
	}
	parent := ""
	if ids := layerIDs(diffIDs); len(ids) > 0 {
		parent = ids[len(ids)-1]
	}
	filled, err := im.fill(ctx, "rootfs", parent, im.src.layers[len(im.src.layers)-1], "")
	if err != nil {
		return fmt.Errorf("%s: %w", im.src.Kind, err)
	}
	if im.src.guessed {
		err = im.checkNoImage(ctx, filled)
	}
	var config []byte
	if err == nil {
		config, err = im.src.describe(append(diffIDs, filled.diffID))
	}
	if err != nil {
		return errors.Join(err, filled.discard(ctx))
	}
	image, err := im.image(config)
	if err == nil {
		err = im.checkTaken(image)
	}
	if err != nil {
		return errors.Join(err, filled.discard(ctx))
	}
	if err := im.rename(ctx, filled, image.Top()); err != nil {
		return err
	}
	return im.finish(image)
}

// makeBelow sees to it that the layers below the last one are there, and returns their diff IDs.
func (im *importer) makeBelow(ctx context.Context) (diffIDs []digest.Digest, err error) {
	if len(im.src.layers) == 1 {
		im.done.Reused = append(im.done.Reused, layerIDs(im.src.below)...)
		return slices.Clone(im.src.below), nil
	}
	parent := ""
	for i, diffID := range im.src.below {
		if im.src.layers[i].made {
			diffID, err = im.madeLayer(ctx, i, diffIDs, parent)
		} else {
			err = im.layer(ctx, i, topID(diffIDs, diffID), parent, diffID)
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(im.src.layers), err)
		}
		parent = topID(diffIDs, diffID)
		diffIDs = append(diffIDs, diffID)
	}
	return diffIDs, nil
}

// madeLayer makes a layer on others, and returns its diff ID.
func (im *importer) madeLayer(ctx context.Context, i int, below []digest.Digest, parent string) (digest.Digest, error) {
	filled, err := im.fill(ctx, "rootfs", parent, im.src.layers[i], "")
	if err != nil {
		return "", err
	}
	return filled.diffID, im.rename(ctx, filled, topID(below, filled.diffID))
}

// topID is the name of a layer on others.
func topID(below []digest.Digest, diffID digest.Digest) string {
	ids := layerIDs(append(slices.Clone(below), diffID))
	return ids[len(ids)-1]
}

// checkNoImage refuses a tree that is the archive of an image, of which its beginning did not tell.
func (im *importer) checkNoImage(ctx context.Context, f *filled) (err error) {
	backend := im.store.driver.Backend()
	dir, err := backend.Mount(ctx, f.name, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Unmount(context.WithoutCancel(ctx), f.name)) }()
	for _, mark := range imageMarks {
		if _, err := os.Lstat(filepath.Join(dir, mark)); err == nil {
			kind := OCIArchive
			if mark == dockerManifest {
				kind = DockerArchive
			}
			return fault.New(errdefs.ErrInvalidArgument, "there is %s in it, so it is an image: write %s:%s, or %s:%[3]s if it is a root filesystem all the same",
				mark, kind, im.src.Origin, RootFS)
		}
	}
	return nil
}

func (im *importer) image(config []byte) (*Image, error) {
	parsed, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	return &Image{
		Name: im.name, Origin: im.src.Origin, Imported: time.Now().UTC().Truncate(time.Second),
		Config: config, parsed: parsed,
	}, nil
}

// checkTaken refuses a name that stands for another image.
func (im *importer) checkTaken(image *Image) error {
	there, err := im.store.Get(im.name)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil && im.opts.Replace:
		im.store.log.Warn("replacing an image record that cannot be read", "error", err)
		return nil
	case err != nil:
		return err
	case there.ID() == image.ID():
		return nil
	case im.opts.Replace:
		im.replaced = there
		return nil
	}
	return fault.New(errdefs.ErrAlreadyExists, "another image has the name %s: its ID is %s", im.name, there.ID())
}

// finish records the image, whose layers are all there.
func (im *importer) finish(image *Image) error {
	im.done.Image = image
	return im.store.save(image)
}

// layer sees to it that the layer is there.
func (im *importer) layer(ctx context.Context, i int, id, parent string, diffID digest.Digest) error {
	exists, err := im.store.layerExists(ctx, id)
	if err != nil {
		return err
	}
	if exists {
		im.progress.Start(short(id), 0).End("already there")
		im.done.Reused = append(im.done.Reused, id)
		return nil
	}
	filled, err := im.fill(ctx, id, parent, im.src.layers[i], diffID)
	if err != nil {
		return err
	}
	return im.rename(ctx, filled, id)
}

// filled is a complete layer that still has a provisional name.
type filled struct {
	store  *Store
	name   string
	diffID digest.Digest
	split  *splitter
	// inexact is why the tar cannot be put together again; nil: it can.
	inexact error
}

func (f *filled) discard(ctx context.Context) error {
	f.split.discard()
	return f.store.driver.Backend().Remove(context.WithoutCancel(ctx), f.name)
}

// fill makes a layer under a provisional name from a layer tar, and checks all digests: want is the diff
// ID, or "" if that is not known.
func (im *importer) fill(ctx context.Context, prefix, parent string, layer sourceLayer, want digest.Digest) (_ *filled, err error) {
	f := &filled{store: im.store, name: partialName(prefix)}
	if f.split, err = newSplitter(im.store.path(tarSplitDir), nil); err != nil {
		return nil, err
	}
	if err := im.store.driver.WithContext(ctx).Create(f.name, parent, nil); err != nil {
		f.split.discard()
		return nil, err
	}
	task := im.progress.Start(short(prefix), layer.size)
	f.diffID, err = im.apply(ctx, f, layer, task)
	if err == nil && want != "" && f.diffID != want {
		err = mismatch("the layer tar", f.diffID, want)
	}
	if err != nil {
		task.End("failed")
		return nil, errors.Join(err, f.discard(ctx))
	}
	task.End("done")
	return f, nil
}

// apply unpacks a layer tar and returns the digest of the uncompressed tar.
func (im *importer) apply(ctx context.Context, f *filled, layer sourceLayer, task Task) (digest.Digest, error) {
	hash, report := digest.SHA256.Hash(), layertar.ApplyReport{}
	err := readLayer(ctx, layer, task, func(tar io.Reader) error {
		tee := io.TeeReader(tar, io.MultiWriter(hash, f.split))
		opts := layertar.ApplyOptions{LooseEnd: layer.unverified, Report: &report}
		if _, err := im.store.driver.ApplyWith(ctx, f.name, tee, opts); err != nil {
			return err
		}
		// The bytes after the end mark of the tar belong to the digest.
		_, err := io.Copy(io.Discard, tee)
		return err
	})
	if err != nil {
		return "", err
	}
	diffID := digest.NewDigest(digest.SHA256, hash)
	shape, err := f.split.finish()
	if err == nil && report.Overwritten {
		err = im.keepLost(ctx, f, layer, diffID)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f.inexact = err
	return diffID, im.checkShape(f.name, shape, layer.unverified)
}

// readLayer reads a layer tar, decompressed, and checks the digest of the stored blob.
func readLayer(ctx context.Context, layer sourceLayer, task Task, read func(tar io.Reader) error) (err error) {
	stored, err := layer.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stored.Close()) }()
	verified := newVerifier(stream.CountReads(stream.ReadUntil(ctx, stored), task.Add), "the stored layer", layer.digest, layer.size)
	tar, _, err := layertar.Decompress(verified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	if err := read(tar); err != nil {
		return err
	}
	// The bytes after the end of the compressed data belong to the digest.
	_, err = io.Copy(io.Discard, verified)
	return err
}

// keepLost reads the layer tar a second time to keep the data of those entries that later ones took away.
func (im *importer) keepLost(ctx context.Context, f *filled, layer sourceLayer, diffID digest.Digest) error {
	var lost map[int]bool
	err := im.store.withParts(ctx, f.split.file.Name(), f.name, func(files storage.FileGetter, parts io.Reader) (err error) {
		lost, err = lostData(files, parts)
		return err
	})
	if err != nil || len(lost) == 0 {
		return err
	}
	again, err := newSplitter(im.store.path(tarSplitDir), lost)
	if err != nil {
		return err
	}
	hash := digest.SHA256.Hash()
	err = readLayer(ctx, layer, noProgress{}, func(tar io.Reader) error {
		_, err := io.Copy(io.MultiWriter(hash, again), tar)
		return err
	})
	if _, serr := again.finish(); err == nil {
		err = serr
	}
	if got := digest.NewDigest(digest.SHA256, hash); err == nil && got != diffID {
		err = fault.New(errdefs.ErrDataLoss, "the tar has digest %s when it is read again, not %s: it was changed meanwhile", got, diffID)
	}
	if err != nil {
		again.discard()
		return fmt.Errorf("the layer itself replaces or removes some of its files (%d): %w", len(lost), err)
	}
	f.split.discard()
	f.split = again
	return nil
}

// checkShape warns of ignored parts of a tar. Without a digest, nothing else reveals a tar that was cut off.
func (im *importer) checkShape(layer string, s tarShape, unverified bool) error {
	layer, _, _ = strings.Cut(layer, "-partial-")
	log := im.store.log.With("source", im.src.Origin, "layer", short(layer))
	if unverified && s.entries == 0 && s.endMark < 2 {
		return fmt.Errorf("the tar has no entries and no end mark: %w", io.ErrUnexpectedEOF)
	}
	if s.padding > 0 {
		log.Warn("the padding in the tar has bytes other than zeros, which are ignored", "entries", s.padding)
	}
	if unverified && s.endMark < 2 {
		log.Warn("the tar has no end mark of two blocks of zeros: if it was cut off, files are missing", "blocks", s.endMark)
	}
	if s.trailing > 0 {
		log.Warn("the tar has bytes behind its end, which are ignored", "bytes", s.trailing)
	}
	return nil
}

// rename gives a filled layer its name. Where another import was faster, that one's layer is used.
func (im *importer) rename(ctx context.Context, f *filled, id string) error {
	if f.inexact != nil {
		f.split.discard()
	} else {
		f.inexact = f.split.keep(im.store.splitFile(id))
	}
	if f.inexact != nil {
		im.store.log.Warn("the layer will not be exported byte for byte, but with another digest", "layer", id, "digest", f.diffID, "reason", f.inexact)
	}
	err := cowcommon.Rename(ctx, im.store.driver.Backend(), f.name, id)
	switch {
	case err == nil:
		im.done.Made = append(im.done.Made, id)
		return nil
	case errdefs.IsAlreadyExists(err):
		im.done.Reused = append(im.done.Reused, id)
		return im.store.driver.Backend().Remove(ctx, f.name)
	}
	return errors.Join(err, im.store.driver.Backend().Remove(context.WithoutCancel(ctx), f.name))
}

// removeReplaced removes those layers of the image that had the name before which nothing needs any more.
func (im *importer) removeReplaced(ctx context.Context, l *flock.Lock) error {
	if err := takeAlone(l); err != nil {
		im.store.log.Warn("layers of the replaced image stay, since others may be using them", "reason", err)
		return nil
	}
	_, err := im.store.removeUnused(ctx, im.replaced.Layers(), "")
	return err
}

// undo removes the layers that a failed import made, unless another import may have built on them.
func (im *importer) undo(ctx context.Context, l *flock.Lock) error {
	if len(im.done.Made) == 0 {
		return nil
	}
	if err := takeAlone(l); err != nil {
		im.store.log.Warn("layers of the failed import stay, since others may be using them", "layers", im.done.Made, "reason", err)
		return nil
	}
	_, err := im.store.removeUnused(ctx, im.done.Made, "")
	return err
}

// removeLayer removes a layer and the stored parts of its tar.
func (s *Store) removeLayer(ctx context.Context, id string) error {
	if err := s.driver.Backend().Remove(ctx, id); err != nil {
		return err
	}
	return errors.Join(removeIfThere(s.splitFile(id)), removeIfThere(s.knownFile(id)))
}

// A layer is filled under a provisional name, so that a layer with its own name is always complete.
var partialLayer = regexp.MustCompile(`^([0-9a-f]{64}|rootfs)-partial-[0-9a-f]{16}$`)

func partialName(prefix string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + "-partial-" + hex.EncodeToString(b[:])
}

// IsPartial reports whether a layer of that name belongs to an incomplete import.
func IsPartial(layer string) bool { return partialLayer.MatchString(layer) }

var imageLayer = regexp.MustCompile(`^[0-9a-f]{64}$`)

// IsLayerName reports whether name is of the form that layers of images have.
func IsLayerName(name string) bool { return imageLayer.MatchString(name) }

// short is a layer's name as people see it.
func short(id string) string {
	if IsLayerName(id) {
		return id[:12]
	}
	return id
}

// sweep removes the remains of imports that were cut off. The caller knows that there is no other import.
func (s *Store) sweep(ctx context.Context) error {
	var errs []error
	layers := make(map[string]bool)
	for v, err := range s.driver.Backend().Volumes(ctx) {
		if err != nil {
			return err
		}
		layers[v.Name] = true
		if IsPartial(v.Name) {
			s.log.Info("removing the remains of an import that was cut off", "layer", v.Name)
			errs = append(errs, s.driver.Backend().Remove(ctx, v.Name))
		}
	}
	for _, dir := range []string{recordsDir, tarSplitDir} {
		entries, err := os.ReadDir(s.path(dir))
		errs = append(errs, err)
		for _, e := range entries {
			layer, isSplit := strings.CutSuffix(e.Name(), splitSuffix)
			if !isSplit {
				layer, isSplit = strings.CutSuffix(e.Name(), knownSuffix)
			}
			if strings.HasPrefix(e.Name(), temporaryPrefix) || dir == tarSplitDir && isSplit && !layers[layer] {
				errs = append(errs, os.Remove(s.path(dir, e.Name())))
			}
		}
	}
	return errors.Join(errs...)
}
