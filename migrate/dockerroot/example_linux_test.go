package dockerroot_test

import (
	"context"
	"fmt"
	"log"
	"path/filepath"
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
image of 2 layers: [localhost:5000/team/web:1 localhost:5000/team/web:latest]
image of 1 layers: [docker.io/library/debian:12]
image of 3 layers: []
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
	for _, image := range inventory.Images {
		fmt.Printf("image of %d layers: %v\n", len(image.Layers), image.Names)
	}
	for _, container := range inventory.Containers {
		fmt.Println("container", container.Name)
	}
}
