package client_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/client"
	"github.com/cowshed/cowshed/internal/testfs"
)

// socket is the socket of the API. TestExamples sets it.
var socket = "/run/cowshed/api.sock"

func TestExamples(t *testing.T) {
	s := serve(t).create("web", "motd", "hello")
	socket = s.socket
	testfs.Example(t, Example, "try-1\ntry-2")
	s.write("try-1", "motd", "good morning")
	s.write("web", "motd", "good evening")
	testfs.Example(t, ExampleClient_Merge, "C /motd in the fork, C in web\nmerged /motd")
	testfs.Example(t, ExampleClient_Diff, "motd")
	testfs.Example(t, ExampleNewClient_errors, "not_found: no layer or image nginx (cowshed ls lists layers, cowshed images lists images)")
}

// Makes two forks of the layer web. Run by TestExamples.
func Example() {
	c := client.NewClient(socket)
	defer c.Close()
	forks, err := c.Fork(context.Background(), "web", api.NewForks{Name: "try", Count: 2})
	if err != nil {
		log.Fatal(err)
	}
	for _, fork := range forks {
		fmt.Println(fork.Name)
	}
}

// Merges a fork, and takes its state of the paths that both sides have changed. Run by TestExamples.
func ExampleClient_Merge() {
	ctx := context.Background()
	c := client.NewClient(socket)
	defer c.Close()
	merged, err := c.Merge(ctx, "try-1", api.NewMerge{})
	var answered *api.Error
	if errors.Is(err, errdefs.ErrConflict) && errors.As(err, &answered) {
		for _, conflict := range answered.Conflicts {
			fmt.Println(conflict.Fork, conflict.Path, "in the fork,", conflict.Layer, "in", answered.Into)
		}
		merged, err = c.Merge(ctx, "try-1", api.NewMerge{Strategy: api.Theirs})
	}
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range merged.Changes {
		fmt.Println("merged", change.Path)
	}
}

// Reads the changes of a fork as a tar. Run by TestExamples.
func ExampleClient_Diff() {
	c := client.NewClient(socket)
	defer c.Close()
	diff, err := c.Diff(context.Background(), "try-1", client.CompareOptions{}, "")
	if err != nil {
		log.Fatal(err)
	}
	defer diff.Close()
	for r := tar.NewReader(diff); ; {
		header, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil { // io.ErrUnexpectedEOF if the server could not make the whole tar
			log.Fatal(err)
		}
		fmt.Println(header.Name)
	}
}

// Tells errors apart. Run by TestExamples.
func ExampleNewClient_errors() {
	c := client.NewClient(socket)
	defer c.Close()
	_, err := c.GetLayer(context.Background(), "nginx")
	var answered *api.Error
	switch {
	case errors.Is(err, errdefs.ErrUnavailable):
		fmt.Println("no daemon listens on", socket)
	case errors.As(err, &answered):
		fmt.Println(string(answered.Kind)+":", answered.Message)
	}
}
