package tostore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
	"github.com/cowshed/cowshed/migrate/tostore"
)

// docker is the root of a Docker Engine, and store that of the command cowshed. TestExamples makes them on one btrfs.
var docker, store = "/var/lib/docker", "/var/lib/cowshed"

func TestExamples(t *testing.T) {
	mnt := testfs.Btrfs(t)
	docker, store = filepath.Join(mnt, "docker"), filepath.Join(mnt, "cowshed")
	testroot.NewSample(t, docker, "overlay2")
	testfs.Example(t, Example, "made: 7 layers, 3 images, 2 containers")
}

// The images and containers of Docker come to the store of the command cowshed. Run by TestExamples.
func Example() {
	ctx := context.Background()
	home, state := filepath.Join(store, "btrfs"), filepath.Join(store, "migration")
	backend, err := btrfs.Open(ctx, home, btrfs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	driver := cowdriver.New("btrfs", backend, cowdriver.Options{})
	target, err := tostore.New(tostore.Options{
		Driver: driver, Images: filepath.Join(store, "images"), Home: home, State: migrate.TargetState(state), Origin: "docker",
	})
	if err != nil {
		log.Fatal(err)
	}
	source, err := dockerroot.Open(ctx, dockerroot.Options{Dir: docker})
	if err != nil {
		log.Fatal(err)
	}
	m := migrate.New(source, target, migrate.Options{Source: docker, Target: "store " + store, State: state})
	result, err := m.Run(ctx, nil)
	if err := errors.Join(err, source.Close(), target.Close(), driver.Cleanup()); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("made: %d layers, %d images, %d containers\n", result.Made["layer"], result.Made["image"], result.Made["container"])
}
