package snapshotter_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
	"github.com/cowshed/cowshed/snapshotter"
)

// root is a directory on btrfs. TestExamples sets it.
var root = "/var/lib/cowshed/containerd"

func TestExamples(t *testing.T) {
	root = testfs.Btrfs(t)
	testfs.Example(t, Example, "Committed image\nActive container of image")
}

// An image, and a container with a limit. Run by TestExamples.
func Example() {
	ctx := context.Background()
	backend, err := btrfs.Open(ctx, filepath.Join(root, "btrfs"), btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	sn, err := snapshotter.New(ctx, root, backend, snapshotter.Options{DefaultLimit: quota.Limit{Bytes: 1 << 30}})
	if err != nil {
		log.Fatal(err)
	}
	defer sn.Close()

	mounts, err := sn.Prepare(ctx, "extract", "")
	if err != nil {
		log.Fatal(err)
	}
	err = mount.WithTempMount(ctx, mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644)
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := sn.Commit(ctx, "image", "extract"); err != nil {
		log.Fatal(err)
	}
	if _, err := sn.Prepare(ctx, "container", "image"); err != nil {
		log.Fatal(err)
	}
	for _, key := range []string{"image", "container"} {
		info, err := sn.Stat(ctx, key)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(info.Kind, " ", info.Name)
		if info.Kind == snapshots.KindActive {
			fmt.Print(" of ", info.Parent)
		}
		fmt.Println()
	}
}
