package live_test

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
	"github.com/cowshed/cowshed/live"
)

// root is a directory on btrfs. TestExamples sets it.
var root = "/var/lib/cowshed"

func TestExamples(t *testing.T) {
	root = testfs.Btrfs(t)
	testfs.Example(t, Example, "merged /result into src")
}

// Two attempts at a task, each in a fork of its own. The better one is merged. Run by TestExamples.
func Example() {
	ctx := context.Background()
	backend, err := btrfs.Open(ctx, filepath.Join(root, "btrfs"), btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	if err := backend.Create(ctx, "src", cowcommon.VolumeOptions{}); err != nil {
		log.Fatal(err)
	}
	layers := live.New(backend, filepath.Join(root, "live"), nil)
	if _, err := layers.Fork(ctx, "src", []string{"try-1", "try-2"}, live.ForkOptions{}); err != nil {
		log.Fatal(err)
	}
	dir, err := backend.Mount(ctx, "try-2", "")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "result"), []byte("42\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := backend.Unmount(ctx, "try-2"); err != nil {
		log.Fatal(err)
	}
	merged, err := layers.Merge(ctx, "try-2", live.MergeOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range merged.Changes {
		fmt.Println("merged", change.Path, "into", merged.Into)
	}
}
