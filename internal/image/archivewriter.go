package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/internal/outfile"
	"github.com/cowshed/cowshed/internal/stream"
)

// archiveWriter writes an image as a tar that is an OCI layout, and for docker load has the file
// manifest.json as well. Docker itself writes its archives so.
type archiveWriter struct {
	spooled
	path    string
	replace bool
	docker  bool
	stdout  io.Writer
}

func newArchiveWriter(ref Reference, opts ExportOptions) (*archiveWriter, error) {
	w := &archiveWriter{path: ref.Path, replace: opts.Replace, docker: ref.Transport == DockerArchive, stdout: opts.Stdout}
	if w.stdout == nil {
		w.stdout = os.Stdout
	}
	if ref.Path == Stdio {
		return w, nil
	}
	return w, outfile.Check(ref.Path, opts.Replace)
}

func (a *archiveWriter) finish(ctx context.Context, image *writtenImage) error {
	if a.path == Stdio {
		return a.writeTar(stream.WriteUntil(ctx, a.stdout), image)
	}
	f, err := outfile.Create(ctx, a.path, a.replace)
	if err != nil {
		return err
	}
	if err := a.writeTar(stream.WriteUntil(ctx, f), image); err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit()
}

func (a *archiveWriter) writeTar(w io.Writer, image *writtenImage) error {
	index := newIndex()
	image.addTo(index)
	t := &tarWriter{tw: tar.NewWriter(w), written: make(map[string]bool)}
	t.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	t.json(ocispec.ImageIndexFile, index)
	if a.docker {
		t.json(dockerManifest, []dockerManifestEntry{dockerEntry(image)})
		if tags := dockerTags(image); tags != nil {
			t.json(dockerRepositories, tags)
		}
	}
	t.bytes(blobPath(digest.FromBytes(image.manifest)), image.manifest)
	t.bytes(blobPath(digest.FromBytes(image.config)), image.config)
	for _, b := range image.layers {
		t.entry(blobPath(b.digest), b.size, b.open())
	}
	return t.close()
}

func dockerEntry(image *writtenImage) dockerManifestEntry {
	entry := dockerManifestEntry{Config: blobPath(digest.FromBytes(image.config)), Layers: []string{}}
	if repository, tag, ok := repoTag(image.name); ok {
		entry.RepoTags = []string{repository + ":" + tag}
	}
	for _, b := range image.layers {
		entry.Layers = append(entry.Layers, blobPath(b.digest))
	}
	return entry
}

// dockerTags is the file "repositories", which older readers take the names from: the layer on top by repository and tag.
func dockerTags(image *writtenImage) map[string]map[string]string {
	repository, tag, ok := repoTag(image.name)
	if !ok || len(image.layers) == 0 {
		return nil
	}
	return map[string]map[string]string{repository: {tag: image.layers[len(image.layers)-1].diffID.Encoded()}}
}

// tarWriter writes files, each once, with headers that are always the same. The first error is kept, and
// nothing is written after it.
type tarWriter struct {
	tw      *tar.Writer
	written map[string]bool
	err     error
}

func (t *tarWriter) json(name string, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		t.err = errors.Join(t.err, err)
	}
	t.bytes(name, data)
}

func (t *tarWriter) bytes(name string, data []byte) {
	t.entry(name, int64(len(data)), bytes.NewReader(data))
}

func (t *tarWriter) entry(name string, size int64, r io.Reader) {
	if t.err != nil || t.written[name] {
		return
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		t.directory(dir)
	}
	t.written[name] = true
	t.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644})
	if t.err == nil {
		_, t.err = io.Copy(t.tw, r)
	}
}

func (t *tarWriter) directory(name string) {
	if t.written[name] {
		return
	}
	if parent := path.Dir(name); parent != "." {
		t.directory(parent)
	}
	t.written[name] = true
	t.header(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
}

func (t *tarWriter) header(h *tar.Header) {
	h.ModTime = time.Unix(0, 0)
	if t.err == nil {
		t.err = t.tw.WriteHeader(h)
	}
}

func (t *tarWriter) close() error {
	if t.err != nil {
		return t.err
	}
	return t.tw.Close()
}
