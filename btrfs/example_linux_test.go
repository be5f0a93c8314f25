package btrfs_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// home is a directory on btrfs. TestExamples sets it.
var home = "/var/lib/cowshed/volumes"

func TestExamples(t *testing.T) {
	home = filepath.Join(testfs.Btrfs(t), "volumes")
	testfs.Example(t, Example, "from the image\nsealed: true")
}

// An image, and a container made from it. TestExamples runs it.
func Example() {
	ctx := context.Background()
	backend, err := btrfs.Open(ctx, home, btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()

	if err := backend.Create(ctx, "image", cowcommon.VolumeOptions{}); err != nil {
		log.Fatal(err)
	}
	write(ctx, backend, "image", "file", "from the image")
	if err := backend.Clone(ctx, "container", "image", cowcommon.VolumeOptions{}); err != nil {
		log.Fatal(err)
	}

	view, err := backend.View(ctx, "container")
	if err != nil {
		log.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(view.Dir(), "file"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
	if err := view.Close(); err != nil {
		log.Fatal(err)
	}
	image, err := backend.Stat(ctx, "image")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("sealed:", image.Sealed)
}

// write writes a file in a volume, which it mounts for that time.
func write(ctx context.Context, backend cowcommon.Backend, volume, name, text string) {
	root, err := backend.Mount(ctx, volume, "")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := backend.Unmount(ctx, volume); err != nil {
		log.Fatal(err)
	}
}
