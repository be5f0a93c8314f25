package oldgraph_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate/oldgraph"
)

// root is that of a Docker before 0.7, and home is on the same btrfs. TestExamples makes both.
var root, home = "/var/lib/docker", "/var/lib/cowshed"

func TestExamples(t *testing.T) {
	mnt := testfs.Btrfs(t)
	root, home = filepath.Join(mnt, "docker"), filepath.Join(mnt, "cowshed")
	for name, text := range map[string]string{
		"graph/base/json": `{"id":"base"}`, "graph/base/layer/old": "1",
		"graph/app/json": `{"id":"app","parent":"base"}`, "graph/app/layer/.wh.old": "", "graph/app/layer/new": "2",
		"containers/web/config.json": `{"ID":"web","Name":"/web","Image":"app"}`, "containers/web/rw/written": "3",
		"repositories": `{"Repositories":{"debian":{"7":"app"}}}`,
	} {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	testfs.Example(t, ExampleOpen, "image [docker.io/library/debian:7]: [base app]\ncontainer web: web")
	testfs.Example(t, ExampleInto, "new\nprepared\nwritten")
}

// The images and containers of Docker 0.6 are listed, for a migration to any target. Run by TestExamples.
func ExampleOpen() {
	ctx := context.Background()
	source, err := oldgraph.Open(ctx, root)
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	inventory, err := source.Inventory(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, image := range inventory.Images {
		fmt.Printf("image %v: %v\n", image.Names, image.Layers)
	}
	for _, container := range inventory.Containers {
		fmt.Printf("container %s: %s\n", container.Name, container.Layer)
	}
}

// The images and containers of Docker 0.6 come to a graph driver. Run by TestExamples.
func ExampleInto() {
	driver, err := graphdriver.New("btrfs", graphdriver.Options{Root: home})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := driver.Cleanup(); err != nil {
			log.Fatal(err)
		}
	}()
	options := oldgraph.IntoOptions{SetupInit: func(path string) error {
		return os.WriteFile(filepath.Join(path, "prepared"), nil, 0o644)
	}}
	if err := oldgraph.Into(context.Background(), driver, root, options); err != nil {
		log.Fatal(err)
	}

	tree, err := driver.Get("web", "")
	if err != nil {
		log.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(tree, "*"))
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range names {
		fmt.Println(filepath.Base(name))
	}
	if err := driver.Put("web"); err != nil {
		log.Fatal(err)
	}
}
