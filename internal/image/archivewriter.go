package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// archiveWriter writes an image as a tar that is an OCI layout, and for docker load has the file
// manifest.json as well. Docker itself writes its archives so.
type archiveWriter struct {
	spooled
	ref    Reference
	docker bool
	stdout io.Writer
}

func newArchiveWriter(ref Reference, opts ExportOptions) (*archiveWriter, error) {
	w := &archiveWriter{ref: ref, docker: ref.Transport == DockerArchive, stdout: opts.Stdout}
	if w.stdout == nil {
		w.stdout = os.Stdout
	}
	if ref.Path != Stdio && !opts.Replace && exists(ref.Path) {
		return nil, fmt.Errorf("file %s: %w", ref.Path, errdefs.ErrAlreadyExists)
	}
	return w, nil
}

func (a *archiveWriter) finish(ctx context.Context, image *writtenImage) error {
	if a.ref.Path == Stdio {
		return a.writeTar(&contextWriter{ctx, a.stdout}, image)
	}
	f, err := os.CreateTemp(filepath.Dir(a.ref.Path), temporaryPrefix)
	if err != nil {
		return err
	}
	err = a.writeTar(&contextWriter{ctx, f}, image)
	if err == nil {
		err = f.Chmod(0o644)
	}
	return commitFile(f, a.ref.Path, err)
}

func (a *archiveWriter) writeTar(w io.Writer, image *writtenImage) error {
	index := newIndex()
	addToIndex(index, image)
	t := &tarWriter{tw: tar.NewWriter(w), written: make(map[string]bool)}
	t.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	t.json(ocispec.ImageIndexFile, index)
	if a.docker {
		t.json(dockerManifest, []dockerManifestEntry{dockerEntry(image)})
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
	if image.name != "" {
		entry.RepoTags = []string{repoTag(image.name)}
	}
	for _, b := range image.layers {
		entry.Layers = append(entry.Layers, blobPath(b.digest))
	}
	return entry
}

// repoTag is name with a tag, without which docker load drops it.
func repoTag(name string) string {
	if tagOf(name) == name {
		return name + ":latest"
	}
	return name
}

// tagOf is what stands after the last colon of an image's name, or all of it if there is none.
func tagOf(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[i+1:]
	}
	return name
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
