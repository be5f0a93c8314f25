//go:build cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/btrfs"
	"github.com/containerd/continuity/fs"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerd is a snapshotter of containerd with a differ, called directly, without the cost of gRPC.
type containerd struct {
	ctx         context.Context
	snapshotter snapshots.Snapshotter
	store       content.Store
	applier     diff.Applier
	differ      diff.Comparer
	blobs       map[string]ocispec.Descriptor // layers in the content store, by path of their files
}

// newContainerdBtrfs opens containerd's btrfs snapshotter on root.
func newContainerdBtrfs(root, work string) (contender, error) {
	snapshotter, err := btrfs.NewSnapshotter(filepath.Join(root, "btrfs"))
	return newContainerd(snapshotter, err, work)
}

// newContainerd is a snapshotter of containerd, if it could be opened, with its walking differ. It decompresses gzip with
// igzip: the fastest way that it has, which it takes where the program is installed.
func newContainerd(snapshotter snapshots.Snapshotter, err error, work string) (contender, error) {
	if err == nil {
		err = checkIgzip()
	}
	if err != nil {
		return nil, err
	}
	store, err := openStore(work)
	if err != nil {
		return nil, err
	}
	return containerdOf(snapshotter, store, apply.NewFileSystemApplier(store), walking.NewWalkingDiff(store)), nil
}

// checkIgzip makes sure that containerd finds igzip. Its archive/compression looks once, when it first needs it.
func checkIgzip() error {
	if os.Getenv(disableIgzip) != "" {
		return fmt.Errorf("%s is set: unset it, so that containerd is measured at its fastest", disableIgzip)
	}
	if _, err := exec.LookPath("igzip"); err != nil {
		return fmt.Errorf("containerd is measured with igzip: install the package isal: %w", err)
	}
	return nil
}

// disableIgzip is an environment variable that containerd heeds.
const disableIgzip = "CONTAINERD_DISABLE_IGZIP"

// openStore opens a content store on work, which is on another filesystem as the store is with containerd.
func openStore(work string) (content.Store, error) {
	return contentstore.Open(filepath.Join(work, "content"))
}

func containerdOf(s snapshots.Snapshotter, store content.Store, applier diff.Applier, differ diff.Comparer) *containerd {
	return &containerd{
		ctx:         namespaces.WithNamespace(context.Background(), "bench"),
		snapshotter: s,
		store:       store,
		applier:     applier,
		differ:      differ,
		blobs:       make(map[string]ocispec.Descriptor),
	}
}

func (*containerd) name() string { return "containerd" }

// prepare puts a layer into the content store, where a pull would have left it.
func (c *containerd) prepare(layer *layer) error {
	for _, format := range layer.formats {
		if err := c.prepareBlob(layer, format); err != nil {
			return err
		}
	}
	return nil
}

func (c *containerd) prepareBlob(layer *layer, format layertar.Format) error {
	f, err := layer.open(format)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := digest.FromReader(f)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	blob := ocispec.Descriptor{MediaType: format.MediaType(), Digest: sum, Size: size}
	c.blobs[layer.file(format)] = blob
	return content.WriteBlob(c.ctx, c.store, blob.Digest.String(), f, blob)
}

func (c *containerd) apply(id string, layer *layer, format layertar.Format) error {
	mounts, err := c.snapshotter.Prepare(c.ctx, id+"-unpack", "")
	if err != nil {
		return err
	}
	if _, err := c.applier.Apply(c.ctx, c.blobs[layer.file(format)], mounts); err != nil {
		return err
	}
	return c.snapshotter.Commit(c.ctx, id, id+"-unpack")
}

func (c *containerd) create(id, parent string, limit int64) error {
	if limit != 0 {
		return errNotOffered
	}
	_, err := c.snapshotter.Prepare(c.ctx, id, parent)
	return err
}

func (c *containerd) edit(id string, f func(dir string) error) error {
	mounts, err := c.snapshotter.Mounts(c.ctx, id)
	if err != nil {
		return err
	}
	return mount.WithTempMount(c.ctx, mounts, f)
}

func (*containerd) changes(string, string) (int, error) { return 0, errNotOffered }

func (c *containerd) diff(id, _ string) (diffResult, error) {
	start := time.Now()
	blob, err := rootfs.CreateDiff(c.ctx, id, c.snapshotter, c.differ, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	if err != nil {
		return diffResult{}, err
	}
	result := diffResult{bytes: blob.Size, files: -1, ready: time.Since(start)}
	if countFiles {
		r, err := c.store.ReaderAt(c.ctx, blob)
		if err != nil {
			return result, err
		}
		defer r.Close()
		result, err = countDiff(content.NewReader(r))
		if err != nil {
			return result, err
		}
	}
	return result, nil
}

func (c *containerd) export(id string, format layertar.Format) error {
	_, err := rootfs.CreateDiff(c.ctx, id, c.snapshotter, c.differ, diff.WithMediaType(format.MediaType()))
	return err
}

// walk is the comparison that the walking differ makes.
func (c *containerd) walk(id, parent string) (n int, err error) {
	err = c.withMounts(id, parent, func(lower, upper []mount.Mount) error {
		return mount.WithTempMount(c.ctx, lower, func(lower string) error {
			return mount.WithTempMount(c.ctx, upper, func(upper string) error {
				return fs.Changes(c.ctx, lower, upper, func(kind fs.ChangeKind, _ string, _ os.FileInfo, err error) error {
					if kind != fs.ChangeKindUnmodified {
						n++
					}
					return err
				})
			})
		})
	})
	return n, err
}

// withMounts calls f with mounts of a view of the parent and of the layer.
func (c *containerd) withMounts(id, parent string, f func(lower, upper []mount.Mount) error) (err error) {
	lower, err := c.snapshotter.View(c.ctx, "view-"+parent, parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.snapshotter.Remove(c.ctx, "view-"+parent)) }()
	upper, err := c.snapshotter.Mounts(c.ctx, id)
	if err != nil {
		return err
	}
	return f(lower, upper)
}

func (c *containerd) comparing(id, parent string, f func(compare func() error) error) error {
	return c.withMounts(id, parent, func(lower, upper []mount.Mount) error {
		return f(func() error {
			_, err := c.differ.Compare(c.ctx, lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
			return err
		})
	})
}

func (c *containerd) commit(name, id string) error { return c.snapshotter.Commit(c.ctx, name, id) }

func (c *containerd) usage(id, _ string) (int64, error) {
	usage, err := c.snapshotter.Usage(c.ctx, id)
	return usage.Size, err
}

// remove also has a snapshotter destroy volumes that it leaves for later, as containerd does in its garbage
// collection.
func (c *containerd) remove(id string) error {
	err := c.snapshotter.Remove(c.ctx, id)
	if cleaner, ok := c.snapshotter.(snapshots.Cleaner); ok && err == nil {
		err = cleaner.Cleanup(c.ctx)
	}
	return err
}

// forget empties the content store of diffs, so that none is found to be there already.
func (c *containerd) forget() error {
	keep := make(map[digest.Digest]bool)
	for _, blob := range c.blobs {
		keep[blob.Digest] = true
	}
	return c.store.Walk(c.ctx, func(info content.Info) error {
		if keep[info.Digest] {
			return nil
		}
		return c.store.Delete(c.ctx, info.Digest)
	})
}

func (c *containerd) close() error {
	err := c.snapshotter.Close()
	for path := range c.blobs {
		delete(c.blobs, path)
	}
	if rmErr := c.forget(); !errors.Is(rmErr, os.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	return err
}
