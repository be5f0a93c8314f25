package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/quota"
)

// Send writes the btrfs send stream of top, as "btrfs send" does, incremental from base unless base is nil. Without an
// error, it has written one whole stream.
func (b *Backend) Send(ctx context.Context, w io.Writer, base, top cowcommon.View) error {
	topView, ok := top.(*view)
	if !ok {
		return fault.Wrap("send volume", "", fault.New(errdefs.ErrInvalidArgument, "not a view of this backend"))
	}
	if err := topView.checkIdentity(); err != nil {
		return fault.Wrap("send volume", topView.volume, err)
	}
	parent := uint64(0)
	if base != nil {
		baseView, ok := base.(*view)
		if !ok {
			return fault.Wrap("send volume", topView.volume, fault.New(errdefs.ErrInvalidArgument, "base is not a view of this backend"))
		}
		if err := baseView.checkIdentity(); err != nil {
			return fault.Wrap("send volume", topView.volume, err)
		}
		parent = baseView.dir.info.ID
	}
	err := b.send(ctx, topView, parent, 0, func(r io.Reader) error { return sendstream.Copy(w, r) })
	return fault.Wrap("send volume", topView.volume, err)
}

// StreamKind implements cowcommon.Identifier.
func (b *Backend) StreamKind() string { return Name }

// Identify implements cowcommon.Identifier: the identity is the UUID of the subvolume that the view was received from, and that
// of the view's own subvolume. The kernel clears the former in each writable snapshot.
func (b *Backend) Identify(_ context.Context, v cowcommon.View) (cowcommon.Identity, error) {
	own, ok := v.(*view)
	if !ok {
		return cowcommon.Identity{}, fault.Wrap("identify volume", "", fault.New(errdefs.ErrInvalidArgument, "not a view of this backend"))
	}
	if err := own.checkIdentity(); err != nil {
		return cowcommon.Identity{}, fault.Wrap("identify volume", own.volume, err)
	}
	info := own.dir.info
	if info.ReceivedUUID == (btrfsctl.UUID{}) {
		return cowcommon.Identity{IDs: [][]byte{info.UUID[:]}}, nil
	}
	return cowcommon.Identity{IDs: [][]byte{info.ReceivedUUID[:], info.UUID[:]}}, nil
}

// checkIdentity returns an error if the view has the received UUID of a volume that is not sealed, and so may have been changed
// since. The kernel keeps that UUID in a read-only snapshot, and sends it as the identity of the content.
func (v *view) checkIdentity() error {
	if v.dir.info.ReceivedUUID == (btrfsctl.UUID{}) || v.snapshot == "" && v.dir.info.ReadOnly {
		return nil
	}
	return fault.New(errdefs.ErrFailedPrecondition, "it was received and then made writable, so its content may have changed: make a layer from it, and send that layer")
}

// Receive makes a volume from a btrfs send stream, as "btrfs receive" does, and seals it. An incremental stream needs
// the sealed volume that it builds on. Receive compares UUIDs to make sure that source is that volume.
func (b *Backend) Receive(ctx context.Context, name, source string, r io.Reader) error {
	return fault.Wrap("receive volume", name, b.receiveVolume(ctx, name, source, r))
}

func (b *Backend) receiveVolume(ctx context.Context, name, source string, r io.Reader) error {
	if source == "" {
		return b.receiveFrom(ctx, name, nil, r)
	}
	// Receiving may take long, and source cannot be removed meanwhile.
	src, err := b.acquire(ctx, source, inuse.Viewed)
	if err != nil {
		return err
	}
	if src.info.ReadOnly {
		err = b.receiveFrom(ctx, name, src, r)
	} else {
		err = fault.New(errdefs.ErrFailedPrecondition, "source %s is not sealed", source)
	}
	return errors.Join(err, b.release(source, inuse.Viewed))
}

// receiveFrom receives a volume that builds on src, or on nothing if src is nil.
func (b *Backend) receiveFrom(ctx context.Context, name string, src *subvolume, r io.Reader) error {
	var srcFile *os.File
	var srcID uint64
	if src != nil {
		srcFile, srcID = src.File, src.info.ID
	}
	limit, after, err := b.quotas.Inherit(ctx, quota.Limit{}, srcID)
	if err != nil {
		return err
	}
	var from received
	return b.stage(ctx, name, cowcommon.VolumeOptions{}, after, recipe{
		create: func(staged string) error {
			if src == nil {
				return b.createStaged(staged, limit)
			}
			return snapshotTo(src, b.dirs.staging, staged, limit)
		},
		finish: func(dir *subvolume) (err error) {
			if from, err = receive(ctx, dir.File, srcFile, r); err != nil {
				return err
			}
			return unix.Syncfs(dir.fd())
		},
		publish: func(staged string, dir *subvolume, rename func(from *os.File, as string) error) error {
			return b.publishReceived(staged, name, dir, from, rename)
		},
	})
}

// publishReceived seals a received volume, and then gives it its name by rename. A read-only subvolume cannot be moved to
// another directory. So the volume is sealed in the directory subvolumes, under a name that no volume has. After a crash the
// next start destroys it there.
func (b *Backend) publishReceived(staged, name string, dir *subvolume, from received, rename func(from *os.File, as string) error) error {
	hidden := staging.Name(removedPrefix + name + "~")
	if err := unix.Renameat(int(b.dirs.staging.Fd()), staged, int(b.dirs.subvolumes.Fd()), hidden); err != nil {
		return fmt.Errorf("hide: %w", err)
	}
	err := b.sealReceived(dir, from)
	if err == nil {
		err = rename(b.dirs.subvolumes, hidden)
	}
	if err != nil {
		err = errors.Join(err, b.destroy(b.dirs.subvolumes, hidden))
	}
	return err
}

// sealReceived records the subvolume that a received volume was sent from, and makes the volume read-only. Both are durable
// when it returns.
func (b *Backend) sealReceived(dir *subvolume, from received) error {
	if err := btrfsctl.SetReceived(dir.fd(), from.uuid, from.ctransid); err != nil {
		return fmt.Errorf("set received UUID: %w", err)
	}
	if err := b.insist(func() error { return btrfsctl.SetReadOnly(dir.fd(), true) }); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return b.commit()
}
