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
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
)

// layoutWriter adds an image to an OCI layout in a directory. Other images there stay.
type layoutWriter struct {
	dir   string
	blobs []*os.File // under temporary names, unless the image was finished
}

func newLayoutWriter(dir string) (*layoutWriter, error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case len(entries) > 0 && !exists(filepath.Join(dir, ocispec.ImageLayoutFile)):
		return nil, fault.New(errdefs.ErrAlreadyExists, "directory %s has other things in it than an OCI layout", dir)
	}
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir, digest.SHA256.String()), 0o755); err != nil {
		return nil, err
	}
	return &layoutWriter{dir: dir}, nil
}

func (l *layoutWriter) newBlob() (*os.File, error) {
	f, err := os.CreateTemp(filepath.Join(l.dir, ocispec.ImageBlobsDir), temporaryPrefix)
	if err != nil {
		return nil, err
	}
	l.blobs = append(l.blobs, f)
	return f, f.Chmod(0o644)
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
	return l.writeJSON(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

// locked calls do while no other process of Cowshed changes which images the layout has. NFS cannot lock a directory: then nobody
// waits.
func (l *layoutWriter) locked(ctx context.Context, do func() error) (err error) {
	lock, err := openLock(l.dir, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.close()) }()
	if err := lock.alone(ctx); err != nil && !errors.Is(err, syscall.EBADF) {
		return err
	}
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
	// Directories that were made for nothing go; those with something in them stay.
	_ = os.Remove(filepath.Join(l.dir, ocispec.ImageBlobsDir, digest.SHA256.String()))
	_ = os.Remove(filepath.Join(l.dir, ocispec.ImageBlobsDir))
	_ = os.Remove(l.dir)
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
