package zfs_test

import (
	"context"
	"fmt"
	"log"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
	"github.com/cowshed/cowshed/zfs"
)

// dataset is a dataset whose children are the volumes, and home a directory for their mount points. TestExamples sets
// both.
var dataset, home = "tank/cowshed", "/var/lib/cowshed/zfs"

func TestExamples(t *testing.T) {
	parent, mountpoint := testfs.ZFS(t)
	dataset, home = parent, filepath.Join(mountpoint, "home")
	testfs.Example(t, Example, "container of image, at most 64MiB\nimage is sealed")
}

// An image, and a container made from it with a limit. Run by TestExamples.
func Example() {
	ctx := context.Background()
	backend, err := zfs.Open(ctx, home, dataset, zfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()

	if err := backend.Create(ctx, "image", cowcommon.VolumeOptions{}); err != nil {
		log.Fatal(err)
	}
	limit := quota.Limit{Bytes: 64 << 20}
	if err := backend.Clone(ctx, "container", "image", cowcommon.VolumeOptions{Limit: limit}); err != nil {
		log.Fatal(err)
	}
	container, err := backend.Stat(ctx, "container")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s of %s, at most %s\n", container.Name, container.Parent, quota.FormatSize(container.Limit.Bytes))
	image, err := backend.Stat(ctx, container.Parent)
	if err != nil {
		log.Fatal(err)
	}
	if image.Sealed {
		fmt.Println(image.Name, "is sealed")
	}
}
