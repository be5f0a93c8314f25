package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/flock"
)

// layoutWriter adds an image to an OCI layout in a directory. Other images there stay.
type layoutWriter struct {
	dir    string
	blobs  []*os.File  // under temporary names, unless the image was finished
	lock   *flock.Lock // keeps others from removing temporary files
	marked bool        // it made the directory a layout
}

// newLayoutWriter begins a layout with the file that marks it. So a layout in which nothing was finished before a crash is one, and
// can be written to again.
func newLayoutWriter(ctx context.Context, dir string) (_ *layoutWriter, err error) {
	if err := checkLayout(dir); err != nil {
		return nil, err
	}
	l := &layoutWriter{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if !exists(filepath.Join(dir, ocispec.ImageLayoutFile)) {
		if err := l.writeMark(); err != nil {
			return nil, err
		}
		l.marked = true
	}
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir)
	if err := os.MkdirAll(filepath.Join(blobs, digest.SHA256.String()), 0o755); err != nil {
		return nil, err
	}
	if l.lock, err = flock.Open(blobs, os.O_RDONLY); err != nil {
		return nil, err
	}
	if takeAlone(l.lock) == nil {
		if err := removeTemporary(blobs, filepath.Join(blobs, digest.SHA256.String())); err != nil {
			return nil, err
		}
	}
	return l, l.lock.Shared(ctx)
}

// checkLayout returns ErrAlreadyExists if a directory has other things in it than a layout.
func checkLayout(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	isTemporary := func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), temporaryPrefix) } // a crash has left it
	if err == nil && len(slices.DeleteFunc(entries, isTemporary)) > 0 && !exists(filepath.Join(dir, ocispec.ImageLayoutFile)) {
		err = fault.New(errdefs.ErrAlreadyExists, "directory %s has other things in it than an OCI layout", dir)
	}
	return err
}

// removeTemporary removes files that a crash has left. Nobody writes others meanwhile.
func removeTemporary(dirs ...string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), temporaryPrefix) {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (l *layoutWriter) newBlob(context.Context, bool) (upload, error) {
	f, err := os.CreateTemp(filepath.Join(l.dir, ocispec.ImageBlobsDir), temporaryPrefix)
	if err != nil {
		return nil, err
	}
	l.blobs = append(l.blobs, f)
	return fileUpload{f}, f.Chmod(0o644)
}

func (l *layoutWriter) finish(ctx context.Context, image *writtenImage) error {
	for _, b := range image.layers {
		if b.file == nil { // it is there
			continue
		}
		if err := b.file.Sync(); err != nil {
			return err
		}
		if err := os.Rename(b.file.Name(), filepath.Join(l.dir, blobPath(b.digest))); err != nil {
			return err
		}
	}
	for _, document := range [][]byte{image.config, image.manifest} {
		if err := l.replace(blobPath(digest.FromBytes(document)), document); err != nil {
			return err
		}
	}
	return l.locked(ctx, func() error { return l.addToIndex(image) })
}

// addToIndex adds the image to the index. The caller has the lock, so no image that others add meanwhile is lost.
func (l *layoutWriter) addToIndex(image *writtenImage) error {
	index, err := l.readIndex()
	if err != nil {
		return err
	}
	image.addTo(index)
	if err := l.writeJSON(ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	return l.writeMark()
}

// writeMark writes the file that says that the directory is a layout.
func (l *layoutWriter) writeMark() error {
	return l.writeJSON(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

// locked calls do while nobody else changes which images the layout has. On NFS it keeps away those on the same machine.
func (l *layoutWriter) locked(ctx context.Context, do func() error) error {
	unlock, err := flock.Dir(ctx, l.dir)
	if err != nil {
		return err
	}
	defer unlock()
	return do()
}

func (l *layoutWriter) readIndex() (*ocispec.Index, error) {
	dir, err := openDir(l.dir)
	if err != nil {
		return nil, err
	}
	index := newIndex()
	err = readJSON(dir, ocispec.ImageIndexFile, index)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return index, errors.Join(err, dir.close())
}

func (l *layoutWriter) writeJSON(name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return l.replace(name, data)
}

// replace writes a file as one.
func (l *layoutWriter) replace(name string, data []byte) error {
	return atomicfile.WriteAs(filepath.Join(l.dir, name), temporaryPrefix, data, 0o644)
}

func (l *layoutWriter) close() error {
	var errs []error
	for _, f := range l.blobs {
		errs = append(errs, f.Close())
		if err := os.Remove(f.Name()); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// Directories that were made for nothing go, and the mark with them; those with something in them stay.
	blobs := filepath.Join(l.dir, ocispec.ImageBlobsDir)
	_ = os.Remove(filepath.Join(blobs, digest.SHA256.String()))
	if err := os.Remove(blobs); l.marked && (err == nil || errors.Is(err, fs.ErrNotExist)) {
		errs = append(errs, os.Remove(filepath.Join(l.dir, ocispec.ImageLayoutFile)))
	}
	_ = os.Remove(l.dir)
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

func newIndex() *ocispec.Index {
	return &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
}

// addTo adds the image to an index, in place of one of the same name.
func (i *writtenImage) addTo(index *ocispec.Index) {
	platform := i.platform
	d := ocispec.Descriptor{
		MediaType:   ocispec.MediaTypeImageManifest,
		Digest:      digest.FromBytes(i.manifest),
		Size:        int64(len(i.manifest)),
		Platform:    &platform,
		Annotations: make(map[string]string),
	}
	if tag := refName(i.name); tag != "" {
		d.Annotations[ocispec.AnnotationRefName] = tag
	}
	if _, _, ok := repoTag(i.name); ok {
		d.Annotations[annotationImageName] = canonicalName(i.name)
	}
	key := indexKey(d)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(old ocispec.Descriptor) bool {
		if key != "" && indexKey(old) == key {
			if old.Digest != d.Digest {
				i.replaced = append(i.replaced, old.Digest)
			}
			return true
		}
		return indexKey(old) == "" && old.Digest == d.Digest // the image has a name already, or its entry exists
	})
	index.Manifests = append(index.Manifests, d)
}

// indexKey is the name that stands for one image of an index alone, "" if it has none. The whole reference is that: two
// repositories may have the same tag.
func indexKey(d ocispec.Descriptor) string {
	name := fullName(d)
	if whole := canonicalName(name); whole != "" {
		return whole
	}
	return cmp.Or(name, d.Annotations[ocispec.AnnotationRefName])
}
