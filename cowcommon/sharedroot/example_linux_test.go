package sharedroot_test

import (
	"context"
	"fmt"
	"log"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/internal/testfs"
)

// exampleHome is a directory on btrfs. TestExample sets it.
var exampleHome = "/var/lib/cowshed/volumes"

func TestExample(t *testing.T) {
	exampleHome = filepath.Join(testfs.Btrfs(t), "volumes")
	testfs.Example(t, Example, "shared\nsnapshot")
}

// A container that shares its image's page cache becomes an ordinary volume. Run by TestExample.
func Example() {
	ctx := context.Background()
	volumes, err := btrfs.Open(ctx, exampleHome, btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	backend, err := sharedroot.New(ctx, volumes, exampleHome, sharedroot.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	if err := backend.Create(ctx, "image", cowcommon.VolumeOptions{}); err != nil {
		log.Fatal(err)
	}
	if err := backend.Clone(ctx, "web", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}); err != nil {
		log.Fatal(err)
	}
	printStyle(ctx, backend)

	if err := cowcommon.SetRootStyle(ctx, backend, "web", cowcommon.SnapshotRoot); err != nil {
		log.Fatal(err)
	}
	printStyle(ctx, backend)
}

func printStyle(ctx context.Context, backend cowcommon.Backend) {
	v, err := backend.Stat(ctx, "web")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.RootStyle)
}
