package dockerroot_test

import (
	"context"
	"fmt"
	"log"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate/dockerroot"
)

// root is that of a Docker Engine. TestExamples makes it.
var root = "/var/lib/docker"

func TestExamples(t *testing.T) {
	testfs.Root(t)
	root = filepath.Join(t.TempDir(), "docker")
	testroot.NewSample(t, root, "overlay2")
	testfs.Example(t, Example, `[overlay2]
7 layers
3 images: [docker.io/library/debian:12 localhost:5000/team/web:1 localhost:5000/team/web:latest]
container blog
container shop`)
}

// The images and containers of a Docker Engine are listed. Run by TestExamples.
func Example() {
	ctx := context.Background()
	drivers, err := dockerroot.Detect(root)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(drivers)
	source, err := dockerroot.Open(ctx, dockerroot.Options{Dir: root, Driver: drivers[0]})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	inventory, err := source.Inventory(ctx)
	if err != nil {
		log.Fatal(err)
	}
	var images, containers []string // in the inventory they are sorted by their IDs
	for _, image := range inventory.Images {
		images = append(images, image.Names...)
	}
	for _, container := range inventory.Containers {
		containers = append(containers, container.Name)
	}
	slices.Sort(images)
	slices.Sort(containers)
	fmt.Println(len(inventory.Layers), "layers")
	fmt.Printf("%d images: %v\n", len(inventory.Images), images)
	for _, name := range containers {
		fmt.Println("container", name)
	}
}
