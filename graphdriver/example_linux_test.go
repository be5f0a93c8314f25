package graphdriver_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// root is a directory on btrfs or ZFS. TestExamples sets it.
var root = "/var/lib/cowshed"

func TestExamples(t *testing.T) {
	root = testfs.Btrfs(t)
	testfs.Example(t, ExampleNew, "btrfs\nA /etc\nA /etc/hostname")
}

// The driver is found by the filesystem. Run by TestExamples.
func ExampleNew() {
	driver, err := graphdriver.New("", graphdriver.Options{Root: root, Priority: []string{"btrfs"}})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := driver.Cleanup(); err != nil {
			log.Fatal(err)
		}
	}()
	fmt.Println(driver)

	if err := driver.Create("image", "", nil); err != nil {
		log.Fatal(err)
	}
	limit := &graphdriver.CreateOpts{StorageOpt: map[string]string{"size": "1G"}}
	if err := driver.CreateReadWrite("container", "image", limit); err != nil {
		log.Fatal(err)
	}
	dir, err := driver.Get("container", "")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte("web\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	changes, err := driver.Changes("container", "image")
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range changes {
		fmt.Println(change.String())
	}
	if err := driver.Put("container"); err != nil {
		log.Fatal(err)
	}
}
