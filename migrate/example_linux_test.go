package migrate_test

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
	"github.com/cowshed/cowshed/migrate/toplugin"
)

// root is that of a Docker Engine with overlay2, on btrfs. TestExamples makes it.
var root = "/var/lib/docker"

func TestExamples(t *testing.T) {
	root = filepath.Join(testfs.Btrfs(t), "docker")
	testroot.NewSample(t, root, "overlay2")
	testfs.Example(t, Example, "docker overlay2: 7 layers, reflinked\nmade: 7 layers, 3 images, 2 containers\nequal: 12\nundone: 12")
}

// A Docker Engine gets its layers moved to Cowshed's plugin, and back. Run by TestExamples.
func Example() {
	ctx := context.Background()
	source, target := openEnds(ctx)
	defer func() {
		if err := errors.Join(target.Close(), source.Close()); err != nil {
			log.Fatal(err)
		}
	}()
	m := migrate.New(source, target, migrate.Options{Source: root, Target: "plugin cowshed", State: state()})

	plan, err := m.Plan(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s %s: %d layers, %s\n", plan.Program, plan.Driver, len(plan.Layers), plan.Layers[0].How)
	result, err := m.Run(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("made: %d layers, %d images, %d containers\n", result.Made["layer"], result.Made["image"], result.Made["container"])
	equal, err := m.Verify(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("equal:", equal)
	removed, err := m.Undo(ctx, nil) // or Finish, which removes the source
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("undone:", removed)
}

func state() string { return filepath.Join(root, "cowshed/migration") }

// openEnds opens the engine's root as a source, and the plugin's home in it as the target.
func openEnds(ctx context.Context) (migrate.Source, migrate.Target) {
	source, err := dockerroot.Open(ctx, dockerroot.Options{Dir: root})
	if err != nil {
		log.Fatal(err)
	}
	home := filepath.Join(root, "cowshed/btrfs")
	target, err := toplugin.New(toplugin.Options{
		Root: root, Plugin: "cowshed", Home: home, State: migrate.TargetState(state()),
		Open: func(ctx context.Context) (*cowdriver.Driver, error) {
			backend, err := btrfs.Open(ctx, home, btrfs.Options{})
			if err != nil {
				return nil, err
			}
			return cowdriver.New("btrfs", backend, cowdriver.Options{}), nil
		},
		Idle:       func(ctx context.Context) error { return dockerroot.Idle(ctx, root) },
		SourceRoot: root, SourceDriver: "overlay2",
	})
	if err != nil {
		log.Fatal(err)
	}
	return source, target
}
