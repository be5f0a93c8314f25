package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Initializer describes the files that a container needs in its root filesystem whatever its image holds, mount
// points above all. The zero value needs nothing.
//
// It becomes an init layer, a committed snapshot between the image and its containers. So it is made once for each
// image, and is no change of a container. The layer stays when the containers are removed, under the name that
// LayerName returns.
type Initializer struct {
	// Name identifies the result of Init. An Init with another result needs another name, since existing layers are
	// used again.
	Name string
	// Init makes it in the root filesystem of an image, mounted on the directory root. The image is not to be
	// trusted: its symbolic links may point anywhere. os.Root helps.
	Init func(root string) error
}

// LayerName is the name of the snapshot that holds the init layer on a parent, which may be "".
func (i Initializer) LayerName(parent digest.Digest) string {
	if parent == "" {
		return i.Name
	}
	return parent.String() + " " + i.Name
}

// InitRootFS makes the snapshot on which a container is to run, with the key name. It is an active snapshot, or a view
// if readonly is set, of the init layer that DefaultInitializer makes on parent. parent is the name of a committed
// snapshot, such as ApplyLayers returned it, or "" for an empty root filesystem. mounter is used to make the init
// layer. It returns the mounts of the snapshot.
//
// Returns errdefs.ErrAlreadyExists if there is a snapshot of that name, which stays as it is. Returns
// errdefs.ErrNotFound if there is no such parent, and errdefs.ErrInvalidArgument if the parent is not committed.
func InitRootFS(ctx context.Context, name string, parent digest.Digest, readonly bool, snapshotter snapshots.Snapshotter, mounter Mounter) ([]mount.Mount, error) {
	return InitRootFSWith(ctx, name, parent, readonly, snapshotter, mounter, DefaultInitializer())
}

// InitRootFSWith is InitRootFS with another initializer, and with options for the snapshot, such as the label that
// limits its size. Without an initializer it needs no mounter.
//
// Errors are those of InitRootFS, and errdefs.ErrInvalidArgument if the initializer has no name, or if there is no
// mounter.
func InitRootFSWith(ctx context.Context, name string, parent digest.Digest, readonly bool, snapshotter snapshots.Snapshotter, mounter Mounter, init Initializer, opts ...snapshots.Opt) ([]mount.Mount, error) {
	r := rootFS{name: name, parent: parent, init: init, sn: snapshotter, mounter: mounter}
	r.create = snapshotter.Prepare
	if readonly {
		r.create = snapshotter.View
	}
	mounts, err := r.make(ctx, opts)
	if err != nil {
		return nil, fault.Wrap("init root filesystem", name, err)
	}
	return mounts, nil
}

// rootFS is a root filesystem that is being made.
type rootFS struct {
	name    string
	parent  digest.Digest
	init    Initializer
	sn      snapshots.Snapshotter
	mounter Mounter
	create  func(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error)
}

func (r rootFS) make(ctx context.Context, opts []snapshots.Opt) ([]mount.Mount, error) {
	if r.init.Init == nil {
		return r.create(ctx, r.name, r.parent.String(), opts...)
	}
	if r.init.Name == "" || r.mounter == nil {
		return nil, fault.New(errdefs.ErrInvalidArgument, "initializer needs a name and a mounter")
	}
	// Before an init layer is made that nobody is going to need.
	switch _, err := r.sn.Stat(ctx, r.name); {
	case err == nil:
		return nil, errdefs.ErrAlreadyExists
	case !errdefs.IsNotFound(err):
		return nil, err
	}
	return r.onInitLayer(ctx, opts)
}

// onInitLayer makes the snapshot, and its parent too, unless it is there.
func (r rootFS) onInitLayer(ctx context.Context, opts []snapshots.Opt) ([]mount.Mount, error) {
	// As long as nothing has been made from the init layer, others may remove it.
	const attempts = 3
	layer := r.init.LayerName(r.parent)
	for range attempts {
		made, err := r.makeInitLayer(ctx, layer)
		if err != nil {
			return nil, fmt.Errorf("init layer: %w", err)
		}
		mounts, err := r.create(ctx, r.name, layer, opts...)
		if err == nil {
			return mounts, nil
		}
		if made {
			r.removeInitLayer(ctx, layer, &err)
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	return nil, fault.New(errdefs.ErrUnavailable, "init layer keeps being removed")
}

// removeInitLayer removes an init layer without children. A later user makes it again.
func (r rootFS) removeInitLayer(ctx context.Context, layer string, operation *error) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	err := r.sn.Remove(ctx, layer)
	if err == nil || errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) { // in the last case it is in use
		return
	}
	*operation = errors.Join(*operation, fmt.Errorf("remove init layer: %w", err))
}

// makeInitLayer makes the init layer, unless it is there, and reports whether it has.
func (r rootFS) makeInitLayer(ctx context.Context, layer string) (made bool, err error) {
	if exists, err := committed(ctx, r.sn, layer); err != nil || exists {
		return false, err
	}
	key := extractionKey(layer)
	// It may have been made although the request for it failed: a remote one, whose answer got lost.
	defer func() {
		if !made {
			discard(ctx, r.sn, key, &err)
		}
	}()
	mounts, err := r.sn.Prepare(ctx, key, r.parent.String())
	if err != nil {
		return false, err
	}
	if err := r.initialize(mounts); err != nil {
		return false, err
	}
	err = r.sn.Commit(ctx, layer, key)
	if errdefs.IsAlreadyExists(err) {
		return false, nil // another has made the same
	}
	return err == nil, err
}

// initialize calls Init with a directory on which mounts are mounted as long as it runs.
func (r rootFS) initialize(mounts []mount.Mount) (err error) {
	dir, err := os.MkdirTemp("", "cowshed-init-")
	if err != nil {
		return err
	}
	// The directory's content stays: it would be the snapshot, should it still be mounted.
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := r.mounter.Mount(dir, mounts...); err != nil {
		// Perhaps some are mounted and perhaps none, so an error says nothing. If they stay, the directory does.
		_ = r.mounter.Unmount(dir)
		return err
	}
	defer func() { err = errors.Join(err, r.mounter.Unmount(dir)) }()
	return r.init.Init(dir)
}
