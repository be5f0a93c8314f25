package cowdriver_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"log"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// home is a directory on btrfs. TestExamples sets it.
var home = "/var/lib/cowshed/btrfs"

func TestExamples(t *testing.T) {
	home = filepath.Join(testfs.Btrfs(t), "btrfs")
	testfs.Example(t, Example, "4 bytes of files\nA /file")
}

// Docker's API over a Backend, with a default limit and a context. Run by TestExamples.
func Example() {
	ctx := context.Background()
	backend, err := btrfs.Open(ctx, home, btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	driver := cowdriver.New("btrfs", backend, cowdriver.Options{Quota: quota.Options{Size: 1 << 30}})
	defer func() {
		if err := driver.Cleanup(); err != nil {
			log.Fatal(err)
		}
	}()

	driver = driver.WithContext(context.Background()) // that of a request
	if err := driver.Create("layer", "", nil); err != nil {
		log.Fatal(err)
	}
	size, err := driver.ApplyDiff("layer", "", exampleLayer())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(size, "bytes of files")
	changes, err := driver.Changes("layer", "")
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range changes {
		fmt.Println(change.String())
	}
}

// exampleLayer is a tar with one file.
func exampleLayer() *bytes.Buffer {
	var layer bytes.Buffer
	entries := tar.NewWriter(&layer)
	if err := entries.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 4}); err != nil {
		log.Fatal(err)
	}
	if _, err := entries.Write([]byte("text")); err != nil {
		log.Fatal(err)
	}
	if err := entries.Close(); err != nil {
		log.Fatal(err)
	}
	return &layer
}
