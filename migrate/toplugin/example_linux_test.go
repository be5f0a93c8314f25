package toplugin_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
	"github.com/cowshed/cowshed/migrate/toplugin"
)

// root is that of a Docker Engine with vfs, on btrfs. TestExamples makes it.
var root = "/var/lib/docker"

func TestExamples(t *testing.T) {
	root = filepath.Join(testfs.Btrfs(t), "docker")
	testroot.NewSample(t, root, "vfs")
	testfs.Example(t, Example, "images: 3\nof the engine with the plugin: repositories.json")
}

// The images and containers of an engine come to its plugin. Run by TestExamples.
func Example() {
	ctx := context.Background()
	source, err := dockerroot.Open(ctx, dockerroot.Options{Dir: root, Driver: "vfs"})
	if err != nil {
		log.Fatal(err)
	}
	state := filepath.Join(root, "cowshed/migration")
	target, err := toplugin.New(toplugin.Options{
		Root: root, Plugin: "cowshed", Home: filepath.Join(root, "cowshed/btrfs"), Open: open,
		Idle:  func(ctx context.Context) error { return dockerroot.Idle(ctx, root) },
		State: migrate.TargetState(state), SourceRoot: root, SourceDriver: "vfs",
	})
	if err != nil {
		log.Fatal(err)
	}
	m := migrate.New(source, target, migrate.Options{Source: root, Target: "plugin cowshed", State: state})
	result, err := m.Run(ctx, nil)
	if err := errors.Join(err, target.Close(), source.Close()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("images:", result.Made["image"])
	names, err := os.Stat(filepath.Join(root, "image/cowshed/repositories.json"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("of the engine with the plugin:", names.Name())
}

// open opens the driver as the plugin does.
func open(ctx context.Context) (*cowdriver.Driver, error) {
	backend, err := btrfs.Open(ctx, filepath.Join(root, "cowshed/btrfs"), btrfs.Options{})
	if err != nil {
		return nil, err
	}
	return cowdriver.New("btrfs", backend, cowdriver.Options{}), nil
}
