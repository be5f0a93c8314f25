package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// A change set becomes a tar. A file that was removed becomes a whiteout.
func ExampleWrite() {
	dir, err := os.MkdirTemp("", "tree")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "added"), []byte("text"), 0o600); err != nil {
		log.Fatal(err)
	}
	changes := []archive.Change{{Path: "/added", Kind: archive.ChangeAdd}, {Path: "/removed", Kind: archive.ChangeDelete}}

	var layer bytes.Buffer
	if err := layertar.Write(context.Background(), &layer, dir, changes, layertar.WriteOptions{}); err != nil {
		log.Fatal(err)
	}
	for entries := tar.NewReader(&layer); ; {
		entry, err := entries.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(entry.Name, entry.Size)
	}
	// Output:
	// added 4
	// .wh.removed 0
}

// A layer with a whiteout is applied to a tree.
func ExampleApply() {
	dir, err := os.MkdirTemp("", "tree")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "removed"), nil, 0o600); err != nil {
		log.Fatal(err)
	}
	var layer bytes.Buffer
	entries := tar.NewWriter(&layer)
	for _, name := range []string{".wh.removed", "added"} {
		if err := entries.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Uid: os.Getuid(), Gid: os.Getgid()}); err != nil {
			log.Fatal(err)
		}
	}
	if err := entries.Close(); err != nil {
		log.Fatal(err)
	}

	if _, err := layertar.Apply(context.Background(), dir, &layer, layertar.ApplyOptions{}); err != nil {
		log.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range names {
		fmt.Println(filepath.Base(name))
	}
	// Output: added
}

// The first bytes of a stream tell its format.
func ExampleDecompress() {
	var compressed bytes.Buffer
	w, err := layertar.Compress(&compressed, layertar.Zstd, 0)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.Copy(w, strings.NewReader("a tar")); err != nil {
		log.Fatal(err)
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}

	r, format, err := layertar.Decompress(&compressed)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(format, format.MediaType(), string(text))
	// Output: zstd application/vnd.oci.image.layer.v1.tar+zstd a tar
}
