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
	"github.com/cowshed/cowshed/internal/sealing"
	"github.com/cowshed/cowshed/quota"
)

// Send writes the btrfs send stream of top, as "btrfs send" does, incremental from base unless base is nil. Without an
// error, it has written one whole stream.
func (b *Backend) Send(ctx context.Context, w io.Writer, base, top cowcommon.View) error {
	topView, ok := top.(*view)
	if !ok {
		return fault.Wrap("send volume", "", fault.New(errdefs.ErrInvalidArgument, "not a view of this backend"))
	}
	parent := uint64(0)
	if base != nil {
		baseView, ok := base.(*view)
		if !ok {
			return fault.Wrap("send volume", topView.volume, fault.New(errdefs.ErrInvalidArgument, "base is not a view of this backend"))
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
	info := own.dir.info
	if info.ReceivedUUID == (btrfsctl.UUID{}) {
		return cowcommon.Identity{IDs: [][]byte{info.UUID[:]}}, nil
	}
	return cowcommon.Identity{IDs: [][]byte{info.ReceivedUUID[:], info.UUID[:]}}, nil
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
		publish: func(rename func() error, dir *subvolume) error {
			return b.publishReceived(ctx, name, dir, from, rename)
		},
	})
}

// publishReceived gives a received volume its name and seals it. Nobody can use the volume before it is sealed: this
// process has claimed the name, and other processes wait for the lock. After a crash in between, the volume exists and
// is complete. It is not sealed, and may lack its received UUID.
func (b *Backend) publishReceived(ctx context.Context, name string, dir *subvolume, from received, rename func() error) error {
	release, err := b.uses.Claim(ctx, name)
	if errdefs.IsFailedPrecondition(err) {
		return errdefs.ErrAlreadyExists
	}
	if err != nil {
		return err
	}
	defer release()
	if err := lockAlone(ctx, dir.File); err != nil {
		return err
	}
	if err := rename(); err != nil {
		return err
	}
	// The caller closes the root, which releases the lock.
	c := &claimed{subvolume: dir, b: b, name: name, release: release}
	err = btrfsctl.SetReceived(dir.fd(), from.uuid, from.ctransid)
	if err != nil {
		err = fmt.Errorf("set received UUID: %w", err)
	} else {
		_, err = c.move(ctx, sealing.Sealed)
	}
	if err != nil {
		_, doomErr := c.move(ctx, sealing.Doomed)
		return errors.Join(err, doomErr)
	}
	return nil
}
