package aufs_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/aufs"
	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// docker is the root of a Docker before 0.7, and home is on the same btrfs. TestExamples makes both.
var docker, home = "/var/lib/docker", "/var/lib/cowshed"

func TestExamples(t *testing.T) {
	mnt := testfs.Btrfs(t)
	docker, home = filepath.Join(mnt, "docker"), filepath.Join(mnt, "cowshed")
	for name, text := range map[string]string{
		"graph/base/json": `{"id":"base"}`, "graph/base/layer/kept": "1", "graph/base/layer/old": "2",
		"graph/app/json": `{"id":"app","parent":"base"}`, "graph/app/layer/.wh.old": "", "graph/app/layer/new": "3",
		"repositories": "{}",
	} {
		path := filepath.Join(docker, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	testfs.Example(t, ExampleMigrate, "kept\nnew")
}

// The images of Docker 0.6 come to the driver for btrfs, as whole trees. Run by TestExamples.
func ExampleMigrate() {
	driver, err := graphdriver.New("btrfs", graphdriver.Options{Root: home})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := driver.Cleanup(); err != nil {
			log.Fatal(err)
		}
	}()
	if err := aufs.Migrate(driver, docker, nil); err != nil {
		log.Fatal(err)
	}

	tree, err := driver.Get("app", "")
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
	if err := driver.Put("app"); err != nil {
		log.Fatal(err)
	}
}
