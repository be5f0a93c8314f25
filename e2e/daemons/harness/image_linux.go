package harness

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// imageTime is the time of all that is in images, so that their digests are the same each time.
var imageTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// File is an entry of a layer. Mode 0 stands for 0644, or 0755 for directories.
type File struct {
	Path string // of a directory with a slash at the end, as in a tar
	Data string
	Mode int64
	Link string // target of a symbolic link
	Hard string // target of a hard link
	UID  int
}

// BusyboxImage returns an image for this platform with a Debian busybox and its commands, on which the given
// layers lie. Its command is a shell.
func BusyboxImage(t testing.TB, p Programs, layers ...[]File) v1.Image {
	t.Helper()
	base, err := BusyboxFiles(p)
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	config := v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}}
	return LayerImage(t, config, append([][]File{base}, layers...)...)
}

// LayerImage returns an image for this platform of the given layers.
func LayerImage(t testing.TB, config v1.Config, layers ...[]File) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, files := range layers {
		img = appendLayer(t, img, files)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Created = v1.Time{Time: imageTime}
	cfg.Config = config
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatalf("harness: %v", err)
	}
	return img
}

// ManyFiles is a layer of n small files below /files, 100 in a directory.
func ManyFiles(n int) []File {
	files := make([]File, 0, n+n/100+1)
	files = append(files, File{Path: "files/"})
	for i := range n {
		dir := fmt.Sprintf("files/%04d/", i/100)
		if i%100 == 0 {
			files = append(files, File{Path: dir})
		}
		files = append(files, File{Path: fmt.Sprintf("%s%06d", dir, i), Data: fmt.Sprintf("file %d\n", i)})
	}
	return files
}

// SaveImage writes the image in the format of docker save to a file of the host, and returns its path.
func (h *Host) SaveImage(img v1.Image, reference string) string {
	h.t.Helper()
	ref, err := name.ParseReference(reference, name.WithDefaultRegistry("docker.io"))
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	file, err := os.CreateTemp(h.Dir, "image-*.tar")
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	defer file.Close()
	if err := tarball.Write(ref, img, file); err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	return file.Name()
}

func appendLayer(t testing.TB, img v1.Image, files []File) v1.Image {
	t.Helper()
	data, err := tarOf(files)
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: imageTime}, CreatedBy: "harness"},
	})
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	return img
}

// BusyboxFiles returns a root filesystem around a Debian busybox with all its commands.
func BusyboxFiles(p Programs) ([]File, error) {
	program, err := p.Busybox()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	files := []File{
		{Path: "bin/"},
		{Path: "bin/busybox", Data: string(data), Mode: 0o755},
		{Path: "dev/"}, {Path: "proc/"}, {Path: "sys/"}, {Path: "root/", Mode: 0o700},
		{Path: "tmp/", Mode: 0o1777},
		{Path: "etc/"},
		{Path: "etc/passwd", Data: "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n"},
		{Path: "etc/group", Data: "root:x:0:\nuser:x:1000:\n"},
		{Path: "etc/hard", Hard: "etc/passwd"},
		{Path: "etc/owned", Data: "of user\n", UID: 1000},
	}
	for _, command := range busyboxCommands {
		files = append(files, File{Path: filepath.Join("bin", command), Link: "busybox"})
	}
	return files, nil
}

// busyboxCommands are those that tests and containers use.
var busyboxCommands = []string{
	"sh", "cat", "chmod", "chown", "cp", "dd", "echo", "env", "false", "find", "grep", "head", "id", "kill", "ln", "ls",
	"md5sum", "mkdir", "mount", "mv", "printf", "rm", "rmdir", "seq", "sha256sum", "sleep", "sort", "stat", "sync", "tar",
	"test", "touch", "tr", "trap", "true", "truncate", "wc", "xargs",
}

// tarOf writes the files as a layer.
func tarOf(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := WriteFiles(w, files); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// WriteFiles adds the files to a layer.
func WriteFiles(w *tar.Writer, files []File) error {
	for _, f := range files {
		h := &tar.Header{
			Name: f.Path, Typeflag: tar.TypeReg, Mode: f.Mode, Size: int64(len(f.Data)),
			Uid: f.UID, Gid: f.UID, ModTime: imageTime,
		}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case f.Hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.Hard
		case f.Path[len(f.Path)-1] == '/':
			h.Typeflag = tar.TypeDir
			if h.Mode == 0 {
				h.Mode = 0o755
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, f.Data); err != nil {
			return err
		}
	}
	return nil
}
