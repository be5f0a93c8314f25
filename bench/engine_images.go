package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// engineImage is an image that engines are measured with: a busybox beside the files that make it large.
type engineImage struct {
	title string // of the section in the report
	key   string // of its files and its name in the registry
	// formats are those that its layers come in; the first is that of the image that containers are made of.
	formats []layertar.Format
	layers  int
	add     func(w *tar.Writer, layer int) error // the files of a layer, from 0 on

	files    int // without those of the busybox
	bytes    int64
	changed  []string                   // the changes of containers
	archives map[layertar.Format]string // OCI layouts in a tar
	changes  string                     // a tar of the files that containers change
}

// smallFilesImage is an image of n small files, spread evenly over its layers.
func smallFilesImage(n, layers int, formats []layertar.Format) *engineImage {
	return &engineImage{
		title: thousands(n) + " files in " + plural(layers, "layer"), key: fmt.Sprintf("%d-%d", n, layers),
		formats: formats, layers: layers,
		add: func(w *tar.Writer, layer int) error {
			first, end := layer*n/layers, (layer+1)*n/layers
			return addFiles(w, first, end-first)
		},
	}
}

// largeFilesImage is an image of n files of size bytes in one layer.
func largeFilesImage(n, size int, formats []layertar.Format) *engineImage {
	return &engineImage{
		title: fmt.Sprintf("%d files of %d MiB, one of them sparse, in one layer", n, size>>20), key: "large",
		formats: formats, layers: 1,
		add: func(w *tar.Writer, _ int) error { return addLarge(w, n, size) },
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "one " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// name is the reference of the image with layers in a format.
func (i *engineImage) name(registry string, format layertar.Format) string {
	return registry + "/bench:" + i.key + "-" + format.String()
}

// make writes the archives to dir.
func (i *engineImage) make(dir, registry string, busybox []harness.File) (err error) {
	layers := make([]*layer, i.layers)
	defer func() {
		for _, l := range layers {
			if l != nil {
				err = errors.Join(err, l.remove())
			}
		}
	}()
	formats := slices.DeleteFunc(slices.Clone(i.formats), func(f layertar.Format) bool { return f == layertar.Plain })
	formats = slices.Insert(formats, 0, layertar.Plain) // of which the others are made
	var names []string
	data := make(map[string][]byte)
	for n := range layers {
		layers[n], err = makeLayer(filepath.Join(dir, fmt.Sprintf("%s-layer%d.tar", i.key, n)), formats, func(w io.Writer) error {
			tw := tar.NewWriter(w)
			if n == 0 {
				if err := harness.WriteFiles(tw, busybox); err != nil {
					return err
				}
			}
			return errors.Join(i.add(tw, n), tw.Close())
		})
		if err != nil {
			return err
		}
		for _, e := range layers[n].entries {
			if !e.isDir && counts(e.name) {
				names = append(names, e.name)
				data[e.name] = e.data
				i.bytes += int64(len(e.data))
			}
		}
	}
	i.files = len(names)
	i.changed = someOf(names, changedFiles)
	i.changes = filepath.Join(dir, i.key+"-changes.tar")
	if err := writeChangesTar(i.changes, data, i.changed); err != nil {
		return err
	}
	i.archives = make(map[layertar.Format]string)
	for _, format := range i.formats {
		i.archives[format] = filepath.Join(dir, i.key+"-"+format.String()+".oci.tar")
		if err := writeArchive(i.archives[format], i.name(registry, format), layers, format); err != nil {
			return err
		}
	}
	return nil
}

// counts tells whether a file is one of those that make the image large.
func counts(name string) bool {
	return strings.HasPrefix(name, "usr") || strings.HasPrefix(name, "large")
}

// remove deletes the archives.
func (i *engineImage) remove() (err error) {
	if i.changes != "" {
		err = os.Remove(i.changes)
	}
	for _, path := range i.archives {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// writeArchive writes an image of the layers as an OCI layout.
func writeArchive(path, name string, layers []*layer, format layertar.Format) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	w := layoutWriter{tar.NewWriter(file)}

	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Env: []string{"PATH=/bin"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l.data))
		blob, err := w.addLayer(l, format)
		if err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, blob)
	}
	if manifest.Config, err = w.addJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	target, err := w.addJSON(ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	target.Annotations = map[string]string{images.AnnotationImageName: name}
	index := ocispec.Index{Versioned: manifest.Versioned, Manifests: []ocispec.Descriptor{target}}
	for _, f := range []struct {
		name  string
		value any
	}{{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}, {ocispec.ImageIndexFile, index}} {
		data, err := json.Marshal(f.value)
		if err != nil {
			return err
		}
		if err := w.add(f.name, data); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), file.Close())
}

// layoutWriter writes an OCI layout.
type layoutWriter struct{ *tar.Writer }

func (w layoutWriter) addJSON(mediaType string, value any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, w.add(blobPath(d.Digest), data)
}

func (w layoutWriter) addLayer(l *layer, format layertar.Format) (ocispec.Descriptor, error) {
	data, err := os.ReadFile(l.file(format))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: format.MediaType(), Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, w.add(blobPath(d.Digest), data)
}

func (w layoutWriter) add(name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

func blobPath(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}
