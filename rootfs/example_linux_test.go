package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/rootfs"
	"github.com/cowshed/cowshed/snapshotter"
)

// A program has a snapshotter, Cowshed's or another, a content store, and the layers of an image in it.
// TestExamples makes them.
var (
	sn     *snapshotter.Snapshotter
	store  content.Store
	layers []rootfs.Layer
)

func TestExamples(t *testing.T) {
	var err error
	store, err = contentstore.Open(t.TempDir())
	require.NoError(t, err)
	mnt := testfs.Btrfs(t)
	backend, err := btrfs.Open(t.Context(), filepath.Join(mnt, "volumes"), btrfs.Options{})
	require.NoError(t, err)
	sn, err = snapshotter.New(t.Context(), filepath.Join(mnt, "snapshotter"), backend, snapshotter.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, sn.Close()) }()
	layers = []rootfs.Layer{storeLayer(t)}
	testfs.Example(t, Example, "hello\n"+ocispec.MediaTypeImageLayerGzip)
}

// storeLayer stores a layer of one file.
func storeLayer(t *testing.T) rootfs.Layer {
	var layer bytes.Buffer
	entries := tar.NewWriter(&layer)
	require.NoError(t, entries.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 5}))
	_, err := entries.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, entries.Close())
	blob := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer.Bytes()), Size: int64(layer.Len())}
	require.NoError(t, content.WriteBlob(t.Context(), store, "layer", &layer, blob))
	return rootfs.Layer{Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: blob.Digest}, Blob: blob}
}

// An image becomes the root filesystem of a container, and the container's changes become a layer. Run by TestExamples.
func Example() {
	ctx := context.Background()
	differ := snapshotter.NewDiffer(sn, store)
	chainID, err := rootfs.ApplyLayers(ctx, layers, sn, rootfs.FromApplier(differ))
	if err != nil {
		log.Fatal(err)
	}
	mounts, err := rootfs.InitRootFS(ctx, "container", chainID, false, sn, rootfs.HostMounter{})
	if err != nil {
		log.Fatal(err)
	}
	// A runtime gets the mounts, and runs the container on them.
	err = mount.WithTempMount(ctx, mounts, func(dir string) error {
		text, err := os.ReadFile(filepath.Join(dir, "file"))
		if err != nil {
			return err
		}
		fmt.Println(string(text))
		return os.WriteFile(filepath.Join(dir, "made"), nil, 0o644)
	})
	if err != nil {
		log.Fatal(err)
	}
	layer, err := rootfs.Diff(ctx, "container", "upload", sn, rootfs.FromComparer(differ))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(layer.MediaType)
}
