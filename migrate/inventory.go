package migrate

import (
	"github.com/opencontainers/go-digest"
)

// Kind says which purpose a layer has.
type Kind string

const (
	// ImageLayer is a layer of an image. It has a chain ID, and nothing changes it.
	ImageLayer Kind = "image"
	// InitLayer is the layer between an image and a container, in which Docker makes /etc/hosts and the like.
	InitLayer Kind = "init"
	// ContainerLayer is the writable layer of a container.
	ContainerLayer Kind = "container"
)

// Layer is a layer of an old root.
type Layer struct {
	ID     string // its name in the old driver
	Parent string // the ID of the layer below, "" for a base
	Kind   Kind
	// ChainID and DiffID are set for an image's layer, and were checked: ChainID follows from the diff IDs of the layer
	// and of the layers below. They are "" for other layers.
	ChainID, DiffID digest.Digest
	Size            int64 // bytes of its files, as recorded; -1: unknown
	Limit           int64 // bytes that it may add, 0: no limit
}

// Image is an image of an old root.
type Image struct {
	ID     digest.Digest // of Config
	Config []byte        // as it is kept
	// Names are the normalised references with a tag, as "docker.io/library/debian:12"; none for an untagged image.
	Names []string
	// Digests are the normalised references with a digest of a registry's manifest.
	Digests []string
	Layers  []string // IDs, base first
	// Parent is the ID of the image from which a build or a commit has made this image. It is "" if that image is
	// unknown, or is not in the root. Docker does not list an untagged image that is the parent of another image.
	Parent digest.Digest
}

// Container is a container of an old root.
type Container struct {
	ID      string
	Name    string        // without "/"
	Image   digest.Digest // ID of the image, "" if that is unknown
	Layer   string        // ID of the writable layer
	Running bool          // as recorded
	// Dir is the directory of the container's own files below the root, such as "containers/ID"; "" if it has none.
	Dir string
}

// Problem says why one thing cannot be moved.
type Problem struct {
	What string // "layer", "image" or "container"
	ID   string
	Name string // for people, "" if it has none
	Err  error
}

// Inventory lists the things in an old root. Only whole things are in it: all layers of its images and containers are there.
type Inventory struct {
	Program    string      // "docker", "docker-before-0.7" or "containers-storage"
	Driver     string      // of the old root, such as "overlay2"
	Layers     []Layer     // parents first
	Images     []Image     // sorted by ID
	Containers []Container // sorted by ID
	Problems   []Problem   // of things that are not listed
}
