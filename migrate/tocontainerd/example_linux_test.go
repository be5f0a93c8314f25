package tocontainerd_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
	"github.com/cowshed/cowshed/migrate/tocontainerd"
)

// A containerd with Cowshed, the root of a Docker Engine, and a directory for the journal. TestExamples makes them.
var address, docker, state = "/run/containerd/containerd.sock", "/var/lib/docker", "/var/lib/cowshed/migration"

func TestExamples(t *testing.T) {
	var mnt string
	address, mnt = tocontainerd.Serve(t)
	docker, state = filepath.Join(mnt, "docker"), filepath.Join(mnt, "migration")
	testroot.NewSample(t, docker, "overlay2")
	testfs.Example(t, Example, "made: 7 layers, 3 images, 2 containers")
}

// The images of Docker come to Kubernetes. Containers come as snapshots with their IDs. Run by TestExamples.
func Example() {
	ctx := context.Background()
	source, err := dockerroot.Open(ctx, dockerroot.Options{Dir: docker})
	if err != nil {
		log.Fatal(err)
	}
	target, err := tocontainerd.New(ctx, tocontainerd.Options{
		Address: address, Namespace: "k8s.io", StateDir: migrate.TargetState(state),
	})
	if err != nil {
		log.Fatal(err)
	}
	m := migrate.New(source, target, migrate.Options{Source: docker, Target: "containerd, namespace k8s.io", State: state})
	result, err := m.Run(ctx, nil)
	if err := errors.Join(err, target.Close(), source.Close()); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("made: %d layers, %d images, %d containers\n", result.Made["layer"], result.Made["image"], result.Made["container"])
}
