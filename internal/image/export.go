package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/stream"
)

// ExportOptions says how an image is exported.
type ExportOptions struct {
	Format   layertar.Format // of the layers
	Level    int             // of the compression; 0: the format's default
	Epoch    *time.Time      // SOURCE_DATE_EPOCH: no time is later than that; nil: not set
	Name     string          // of the image there; "" stands for the reference's, or else the image's own
	Replace  bool            // a file may be overwritten
	Exact    bool            // an image that was imported must come out as it was
	Stdout   io.Writer       // nil: os.Stdout
	Progress Progress        // nil: no one is told

	Registries RegistryOptions
	// Containerd connects to containerd, for images that are written there. The connection is closed afterwards. It may be nil.
	Containerd func() (*containerdapi.Services, error)

	reuse bool // layers that the place has need not be written
}

// Exported describes the exported image.
type Exported struct {
	Image    digest.Digest   // of the config: the image's ID
	Manifest digest.Digest   // of the manifest
	Layers   []digest.Digest // diff IDs, base first
	Size     int64           // of the layers as they were written, in bytes
	// Name is the whole reference by which others know the image there, "" if they know it by digest only. An image
	// cannot be given a name with a digest, nor a name that the grammar of references does not allow.
	Name     string
	Replaced []digest.Digest // manifests that had the name there, other ones
	// Was is the ID that the image was imported with, if Image is another, and Changes says why.
	Was     digest.Digest
	Changes []string
}

// Export writes an image, or a layer as an image, to the place that ref names. A layer that was made from an image
// becomes that image with one layer more for it and for each layer between. The same layers with the same options
// give the same bytes.
//
// Returns errdefs.ErrNotFound if there is no such image or layer, and errdefs.ErrAlreadyExists if the file exists.
// Returns errdefs.ErrInvalidArgument if the place cannot be written to in that way.
func (s *Store) Export(ctx context.Context, what string, ref Reference, opts ExportOptions) (*Exported, error) {
	exported, err := s.exportPlanned(ctx, ref, opts, func() (*plan, error) { return s.plan(ctx, what) })
	if err != nil {
		return nil, fmt.Errorf("export %s to %s: %w", what, ref, err)
	}
	return exported, nil
}

// ExportContent writes the whole content of a volume as an image of one layer, to the place that ref names. Nothing in it is of
// the layers below or of their images: no config, no history and no file that the volume does not have. The errors are those of
// Export.
func (s *Store) ExportContent(ctx context.Context, v cowcommon.Volume, ref Reference, opts ExportOptions) (*Exported, error) {
	exported, err := s.exportPlanned(ctx, ref, opts, func() (*plan, error) {
		return &plan{name: v.Name, layers: []planLayer{{top: v.Name, created: v.Created, createdBy: exportedBy(v.Name)}}}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("export the content of %s to %s: %w", v.Name, ref, err)
	}
	return exported, nil
}

// ExportLayer is Export of the layer with the name of a volume, also where an image has that name. image is that of which the
// volume is the uppermost layer, nil for any or none.
func (s *Store) ExportLayer(ctx context.Context, volume string, image *Image, ref Reference, opts ExportOptions) (*Exported, error) {
	exported, err := s.exportPlanned(ctx, ref, opts, func() (*plan, error) {
		if image != nil && image.Top() == volume {
			return imagePlan(image, len(image.DiffIDs())), nil
		}
		return s.layerPlan(ctx, s.readable(), volume)
	})
	if err != nil {
		return nil, fmt.Errorf("export %s to %s: %w", volume, ref, err)
	}
	return exported, nil
}

// exportPlanned writes the image that makePlan plans. Nobody removes images until its parts are in temporary files or in the place.
func (s *Store) exportPlanned(ctx context.Context, ref Reference, opts ExportOptions, makePlan func() (*plan, error)) (_ *Exported, err error) {
	lock, _, err := s.lockShared(ctx)
	if err == nil {
		err = lock.Shared(ctx) // another may export at the same time
	}
	if err != nil {
		return nil, err
	}
	unlock := sync.OnceValue(lock.Close)
	defer func() { err = errors.Join(err, unlock()) }()

	plan, err := makePlan()
	if err != nil {
		return nil, err
	}
	if opts.Name == "" {
		opts.Name = ref.Image
	}
	if opts.Name == "" {
		opts.Name = plan.name
	}
	if ref.Transport == Containerd { // it knows blobs by their digests
		opts.reuse = true
	}
	dest, err := s.destination(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dest.close()) }()
	exported, err := s.export(ctx, plan, dest, opts, unlock)
	if err != nil {
		return nil, err
	}
	exported.Name = nameAt(ref, opts.Name)
	return exported, nil
}

// nameAt is the whole reference by which others know an image of that name in the place, "" if they cannot.
func nameAt(ref Reference, name string) string {
	switch ref.Transport {
	case Registry:
		return canonicalName(ref.Path)
	case Containerd:
		return ref.Image
	}
	if _, _, ok := repoTag(name); !ok {
		return ""
	}
	return canonicalName(name)
}

// destination takes the parts of one image: blobs first, then the image once.
type destination interface {
	// newBlob begins a blob. A fresh one is of no image yet, so that the place cannot have it.
	newBlob(ctx context.Context, fresh bool) (upload, error)
	// finish writes the image.
	finish(ctx context.Context, image *writtenImage) error
	// close releases and removes temporary files. The image stays if it was finished.
	close() error
}

// upload takes the data of a blob.
type upload interface {
	io.Writer
	// end ends the upload of the blob, whose digests and size are known now.
	end(ctx context.Context, b *blob) error
}

// fileUpload writes a blob to a temporary file.
type fileUpload struct{ *os.File }

func (f fileUpload) end(_ context.Context, b *blob) error {
	b.file = f.File
	return nil
}

// haver is a destination that may have a blob by its digest.
type haver interface {
	has(ctx context.Context, blob digest.Digest, size int64) bool
}

// holder is a destination that may have layers already.
type holder interface {
	// held finds the layers with these diff IDs, from the lowest up to the first that is not there in that format. Only
	// their sizes are checked.
	held(ctx context.Context, diffIDs []digest.Digest, format layertar.Format) []*blob
}

// blob is a layer tar as it is to be stored.
type blob struct {
	file   *os.File // nil: the place has it, also if it was sent there
	digest digest.Digest
	diffID digest.Digest
	size   int64 // bytes
	format layertar.Format
	// inexact is why the layer is not put together again from the tar that it was imported with; nil: it is.
	inexact error
}

func (b *blob) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: b.format.MediaType(), Digest: b.digest, Size: b.size}
}

// writtenImage is an image that is ready to be stored.
type writtenImage struct {
	name     string
	config   []byte
	manifest []byte
	platform ocispec.Platform
	layers   []*blob

	replaced []digest.Digest // manifests of that name that were in the place; set by finish
}

// export writes an image, and calls unlock when it needs the store no more.
func (s *Store) export(ctx context.Context, plan *plan, dest destination, opts ExportOptions, unlock func() error) (*Exported, error) {
	image := &writtenImage{name: opts.Name}
	progress := orNoProgress(opts.Progress)
	var changes []string
	if h, ok := dest.(holder); ok && opts.reuse {
		image.layers = h.held(ctx, plan.diffIDs(), opts.Format)
	}
	for _, layer := range plan.layers[:len(image.layers)] {
		progress.Start(short(layer.top), 0).End("already there")
	}
	for _, layer := range plan.layers[len(image.layers):] {
		b, err := s.writeLayer(ctx, layer, dest, opts, progress)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", layer.top, err)
		}
		image.layers = append(image.layers, b)
		if layer.diffID != "" && b.diffID != layer.diffID {
			changes = append(changes, fmt.Sprintf("layer %s is %s now: %v", layer.diffID, b.diffID, b.inexact))
		}
	}
	exported := &Exported{}
	for _, b := range image.layers {
		exported.Layers = append(exported.Layers, b.diffID)
		exported.Size += b.size
	}
	var err error
	if image.config, image.platform, err = plan.makeConfig(exported.Layers, opts.Epoch); err != nil {
		return nil, err
	}
	if image.manifest, err = makeManifest(image); err != nil {
		return nil, err
	}
	exported.Image, exported.Manifest = digest.FromBytes(image.config), digest.FromBytes(image.manifest)
	if plan.whole() && exported.Image != plan.base.ID() {
		exported.Was, exported.Changes = plan.base.ID(), changes
		if opts.Exact {
			return nil, fault.New(errdefs.ErrFailedPrecondition, "image %s would have the ID %s: %s", exported.Was, exported.Image, strings.Join(changes, "; "))
		}
	}
	if err := unlock(); err != nil { // a reader or a registry may take as long as it likes
		return nil, err
	}
	if err := dest.finish(ctx, image); err != nil {
		return nil, err
	}
	exported.Replaced = image.replaced
	return exported, nil
}

func makeManifest(image *writtenImage) ([]byte, error) {
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(image.config), Size: int64(len(image.config)),
		},
		Layers: []ocispec.Descriptor{},
	}
	for _, b := range image.layers {
		manifest.Layers = append(manifest.Layers, b.descriptor())
	}
	return json.Marshal(manifest)
}

// writeLayer writes a layer's tar as a blob: the tar that it was imported from, or else its differences from the
// layer below.
func (s *Store) writeLayer(ctx context.Context, layer planLayer, dest destination, opts ExportOptions, progress Progress) (*blob, error) {
	task := progress.Start(short(layer.top), -1)
	if layer.stored != nil {
		b, err := writeStored(ctx, layer, dest, opts, task)
		if err != nil {
			task.End("failed")
			return nil, err
		}
		task.End("done")
		return b, nil
	}
	if b := s.atPlace(ctx, layer, dest, opts.Format); b != nil {
		task.End("already there")
		return b, nil
	}
	var inexact error
	if layer.diffID != "" {
		b, err := writeBlob(ctx, dest, false, opts, task, func(w io.Writer) error { return s.reassemble(ctx, w, layer.top) })
		if err == nil && b.diffID != layer.diffID {
			err = fault.New(errdefs.ErrDataLoss, "put together again, its tar has digest %s, not %s", b.diffID, layer.diffID)
		}
		switch {
		case err == nil:
			s.noteBlob(layer.top, dest, b)
			task.End("done")
			return b, nil
		case ctx.Err() != nil, errors.As(err, new(placeError)):
			task.End("failed")
			return nil, err
		case errors.Is(err, fs.ErrNotExist):
			inexact = errors.New("the form of its tar is not known")
			s.log.Info("the tar that the layer was imported from is not known: its digest may differ", "layer", layer.top)
		default:
			inexact = err
			s.log.Warn("the layer is not as it was imported: it is exported as it is now, with another digest", "layer", layer.top, "error", err)
		}
	}
	b, err := writeBlob(ctx, dest, layer.diffID == "", opts, task, func(w io.Writer) error { return s.writeDiff(ctx, w, layer, opts.Epoch) })
	if err != nil {
		task.End("failed")
		return nil, err
	}
	task.End("done")
	b.inexact = inexact
	return b, nil
}

func (s *Store) writeDiff(ctx context.Context, w io.Writer, layer planLayer, epoch *time.Time) error {
	c, err := s.driver.Compare(ctx, layer.top, layer.base, cowcommon.Auto)
	if err != nil {
		return err
	}
	return errors.Join(c.WriteTar(ctx, w, epoch), c.Close())
}

// writeBlob compresses the output of write into a file of dest.
func writeBlob(ctx context.Context, dest destination, fresh bool, opts ExportOptions, task Task, write func(io.Writer) error) (*blob, error) {
	up, err := dest.newBlob(ctx, fresh)
	if err != nil {
		return nil, placeError{err}
	}
	stored := &hashWriter{w: placeWriter{up}, hash: digest.SHA256.Hash()}
	compressor, err := layertar.Compress(stored, opts.Format, opts.Level)
	if err != nil {
		return nil, err
	}
	plain := &hashWriter{w: compressor, hash: digest.SHA256.Hash(), task: task}
	if err := errors.Join(write(plain), compressor.Close()); err != nil {
		return nil, err
	}
	b := &blob{
		size: stored.n, format: opts.Format,
		digest: digest.NewDigest(digest.SHA256, stored.hash), diffID: digest.NewDigest(digest.SHA256, plain.hash),
	}
	if err := up.end(ctx, b); err != nil {
		return nil, placeError{err}
	}
	return b, nil
}

// placeError is an error of the place that an image is written to, and not of the image.
type placeError struct{ error }

// Unwrap returns the error itself.
func (e placeError) Unwrap() error { return e.error }

// placeWriter makes the errors of a writer those of the place.
type placeWriter struct{ w io.Writer }

// Write implements io.Writer.
func (p placeWriter) Write(data []byte) (int, error) {
	n, err := p.w.Write(data)
	if err != nil {
		err = placeError{err}
	}
	return n, err
}

// writeStored writes a layer that is stored as a blob: as the blob is, if the blob and the place's layers are compressed.
func writeStored(ctx context.Context, layer planLayer, dest destination, opts ExportOptions, task Task) (*blob, error) {
	format, ok := compressionOf(layer.stored.mediaType)
	if ok && opts.Format != layertar.Plain {
		return copyBlob(ctx, layer, format, dest, task)
	}
	b, err := writeBlob(ctx, dest, false, opts, task, func(w io.Writer) error {
		return readLayer(ctx, *layer.stored, noProgress{}, func(tar io.Reader) error {
			_, err := io.Copy(w, tar)
			return err
		})
	})
	if err == nil && b.diffID != layer.diffID {
		err = mismatch("the layer tar", b.diffID, layer.diffID)
	}
	return b, err
}

// copyBlob writes a layer as it is stored.
func copyBlob(ctx context.Context, layer planLayer, format layertar.Format, dest destination, task Task) (_ *blob, err error) {
	if h, ok := dest.(haver); ok && h.has(ctx, layer.stored.digest, layer.stored.size) {
		return &blob{size: layer.stored.size, format: format, digest: layer.stored.digest, diffID: layer.diffID}, nil
	}
	data, err := layer.stored.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	up, err := dest.newBlob(ctx, false)
	if err != nil {
		return nil, err
	}
	stored := &hashWriter{w: up, hash: digest.SHA256.Hash(), task: task}
	if _, err := io.Copy(stored, stream.ReadUntil(ctx, data)); err != nil {
		return nil, err
	}
	b := &blob{size: stored.n, format: format, digest: digest.NewDigest(digest.SHA256, stored.hash), diffID: layer.diffID}
	if b.digest != layer.stored.digest {
		return nil, mismatch("the stored layer", b.digest, layer.stored.digest)
	}
	return b, up.end(ctx, b)
}

// plan has the parts of an exported image.
type plan struct {
	name   string
	base   *Image // the image whose config it has; nil: none
	layers []planLayer
}

// whole reports whether it is an image as it was imported, with no layer more.
func (p *plan) whole() bool { return p.base != nil && len(p.layers) == len(p.base.DiffIDs()) }

// diffIDs are those of the layers that were imported, base first.
func (p *plan) diffIDs() (ids []digest.Digest) {
	for _, layer := range p.layers {
		if layer.diffID == "" {
			break
		}
		ids = append(ids, layer.diffID)
	}
	return ids
}

// planLayer is a layer that becomes one of the image's layer tars.
type planLayer struct {
	top, base string
	diffID    digest.Digest // that it was imported with; "": it was not
	stored    *sourceLayer  // where its tar is stored; nil: it is made of the volumes top and base
	created   time.Time
	createdBy string // of its entry in the history, as is comment
	comment   string
}

// plan finds out which layers an image is made of.
func (s *Store) plan(ctx context.Context, what string) (*plan, error) {
	images := s.readable()
	for _, image := range images {
		if image.Name == what {
			return imagePlan(image, len(image.DiffIDs())), nil
		}
	}
	return s.layerPlan(ctx, images, what)
}

// readable lists the images whose records can be read.
func (s *Store) readable() []*Image {
	images, err := s.List()
	if err != nil {
		s.log.Warn("some image records cannot be read", "error", err)
	}
	return images
}

// layerPlan is the plan of a layer with those below it, down to the first of an image.
func (s *Store) layerPlan(ctx context.Context, images []*Image, layer string) (*plan, error) {
	var added []planLayer
	for id := layer; ; {
		if base := findChain(images, id); base != nil {
			p := base
			p.name, p.layers = layer, append(p.layers, added...)
			return p, nil
		}
		v, err := s.driver.Backend().Stat(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("no image or layer %s: %w", id, err)
		}
		base, err := s.base(ctx, v)
		if err != nil {
			return nil, err
		}
		added = append([]planLayer{{top: id, base: base, created: v.Created, createdBy: exportedBy(id)}}, added...)
		if base == "" {
			return &plan{name: layer, layers: added}, nil
		}
		if len(added) > maxLayers {
			return nil, fault.New(errdefs.ErrInvalidArgument, "layer %s has more than %d layers below it", layer, maxLayers)
		}
		id = base
	}
}

// exportedBy is the entry for a layer in the history of an exported image.
func exportedBy(layer string) string { return "cowshed export " + layer }

// findChain returns the plan of the image with the layer on top, or else of the lower part of an image up to that
// layer. It returns nil if no image has the layer.
func findChain(images []*Image, layer string) *plan {
	var part *plan
	for _, image := range images {
		for i, id := range image.Layers() {
			if id != layer {
				continue
			}
			p := imagePlan(image, i+1)
			if p.base != nil {
				return p
			}
			part = p
		}
	}
	return part
}

// imagePlan is the plan of the first n layers of an image. Only all of them together have its config.
func imagePlan(image *Image, n int) *plan {
	p := &plan{name: image.Name}
	if n == len(image.DiffIDs()) {
		p.base = image
	}
	base := ""
	for i, id := range image.Layers()[:n] {
		p.layers = append(p.layers, planLayer{top: id, base: base, diffID: image.DiffIDs()[i], created: image.Imported, createdBy: exportedBy(id)})
		base = id
	}
	return p
}

// makeConfig returns the config for layers with those diff IDs.
func (p *plan) makeConfig(diffIDs []digest.Digest, epoch *time.Time) ([]byte, ocispec.Platform, error) {
	inherited := 0
	platform := HostPlatform()
	if p.base != nil {
		inherited, platform = len(p.base.DiffIDs()), p.base.Platform()
	}
	created := time.Time{}
	var history []ocispec.History
	for _, layer := range p.layers[inherited:] {
		created = notAfter(layer.created.UTC(), epoch)
		at := created
		history = append(history, ocispec.History{Created: &at, CreatedBy: layer.createdBy, Comment: layer.comment})
	}

	switch {
	case p.base == nil:
		config, err := newConfig(platform, created, history, diffIDs)
		return config, platform, err
	case len(history) == 0 && equalDigests(diffIDs, p.base.DiffIDs()):
		return p.base.Config, platform, nil
	}
	config, err := amendConfig(p.base.Config, created, history, diffIDs)
	return config, platform, err
}

func equalDigests(a, b []digest.Digest) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// notAfter is t, or the epoch if that is set and earlier (reproducible-builds.org, SOURCE_DATE_EPOCH).
func notAfter(t time.Time, epoch *time.Time) time.Time {
	if epoch != nil && t.After(*epoch) {
		return epoch.UTC()
	}
	return t
}
