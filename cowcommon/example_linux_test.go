package cowcommon_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// home is a directory on btrfs. TestExamples sets it.
var home = "/var/lib/cowshed/volumes"

func TestExamples(t *testing.T) {
	home = filepath.Join(testfs.Btrfs(t), "volumes")
	testfs.Example(t, ExampleComparer_Compare, "A /etc\nA /etc/hostname\nnative: true")
	home = filepath.Join(testfs.Btrfs(t), "volumes")
	testfs.Example(t, ExampleAs, "limits: true")
}

// The changes of a container to its image. Run by TestExamples.
func ExampleComparer_Compare() {
	ctx := context.Background()
	backend, err := btrfs.Open(ctx, home, btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	if err := backend.Create(ctx, "image", cowcommon.VolumeOptions{}); err != nil {
		log.Fatal(err)
	}
	if err := backend.Clone(ctx, "container", "image", cowcommon.VolumeOptions{}); err != nil {
		log.Fatal(err)
	}
	root, err := backend.Mount(ctx, "container", "")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("web\n"), 0o644); err != nil {
		log.Fatal(err)
	}

	// The container is still mounted: the comparison shows it as it is at this moment.
	comparer := cowcommon.NewComparer(backend, user.IdentityMapping{}, slog.Default())
	comparison, err := comparer.Compare(ctx, "container", "image", cowcommon.Auto)
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range comparison.Changes {
		fmt.Println(change.String())
	}
	fmt.Println("native:", comparison.Native)
	if err := comparison.Close(); err != nil {
		log.Fatal(err)
	}
	if err := backend.Unmount(ctx, "container"); err != nil {
		log.Fatal(err)
	}
}

// Not every filesystem can do all. Run by TestExamples.
func ExampleAs() {
	backend, err := btrfs.Open(context.Background(), home, btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	_, ok := cowcommon.As[cowcommon.Limiter](backend)
	fmt.Println("limits:", ok)
}
