package zfs

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// Send writes the stream of zfs send for top, incremental from base unless base is nil. top must have been cloned from
// base, directly or not: otherwise Send returns errdefs.ErrFailedPrecondition. Without an error, it has written one whole stream.
// Returns errdefs.ErrUnavailable if the process was stopped in the middle.
func (b *Backend) Send(ctx context.Context, w io.Writer, base, top cowcommon.View) error {
	topView, ok := top.(*view)
	if !ok {
		return fault.Wrap("send volume", "", fault.New(errdefs.ErrInvalidArgument, "not a view of this backend"))
	}
	from := ""
	if base != nil {
		baseView, ok := base.(*view)
		if !ok {
			return fault.Wrap("send volume", topView.volume, fault.New(errdefs.ErrInvalidArgument, "base is not a view of this backend"))
		}
		from = baseView.snapshot
	}
	err := b.zfs.output(ctx, "send", zfsctl.BeginSize, func(k kernel, to *os.File) error {
		return k.Send(topView.snapshot, from, to)
	}, func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		b.volumes.invalidate()
		err = fault.New(errdefs.ErrNotFound, "a snapshot to be sent is gone: %w", err)
	}
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENODEV) {
		err = fault.New(errdefs.ErrFailedPrecondition, "it was not made from the volume on which the stream is to build: %w", err)
	}
	return fault.Wrap("send volume", topView.volume, err)
}

// StreamKind implements cowcommon.Identifier.
func (b *Backend) StreamKind() string { return Name }

// Identify implements cowcommon.Identifier: the identity is the guid of the snapshot, as 8 bytes, the highest first. A received
// snapshot has the guid of its original.
func (b *Backend) Identify(ctx context.Context, v cowcommon.View) (cowcommon.Identity, error) {
	own, ok := v.(*view)
	if !ok {
		return cowcommon.Identity{}, fault.Wrap("identify volume", "", fault.New(errdefs.ErrInvalidArgument, "not a view of this backend"))
	}
	id, err := b.identify(ctx, own)
	return id, fault.Wrap("identify volume", own.volume, err)
}

func (b *Backend) identify(ctx context.Context, v *view) (cowcommon.Identity, error) {
	if v.snapshot == "" {
		return cowcommon.Identity{}, fault.New(errdefs.ErrFailedPrecondition, "it is not sealed, and the pool takes no snapshot of it now")
	}
	d, err := b.stats(ctx, v.snapshot)
	if err != nil {
		return cowcommon.Identity{}, err
	}
	guid, ok := d.Properties.Number("guid")
	if !ok {
		return cowcommon.Identity{}, fault.New(errdefs.ErrUnavailable, "the kernel does not tell the guid of %s", v.snapshot)
	}
	return cowcommon.Identity{IDs: [][]byte{binary.BigEndian.AppendUint64(nil, guid)}}, nil
}

// Receive makes a volume from the stream of a zfs send of one snapshot, and seals it. An incremental stream needs the
// sealed volume that it builds on. The kernel checks that source is this volume. Errors name the fault of a stream:
//   - errdefs.ErrInvalidArgument if the stream holds something else, is cut off or damaged
//   - errdefs.ErrInvalidArgument if the stream is incremental and source is "", or is full and source is a name
//   - errdefs.ErrFailedPrecondition if the stream builds on another volume than source
//   - errdefs.ErrNotImplemented if the stream needs a feature that the pool or the kernel module lacks, or was resumed
func (b *Backend) Receive(ctx context.Context, name, source string, r io.Reader) error {
	return fault.Wrap("receive volume", name, b.receive(ctx, name, source, r))
}

func (b *Backend) receive(ctx context.Context, name, source string, r io.Reader) (err error) {
	c, err := b.claimNew(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	origin := ""
	if source != "" {
		if _, err := b.volume(ctx, source); err != nil {
			return err
		}
		done, err := b.rely(ctx, source)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.after(err, done)) }()
		isSealed, err := b.isSealed(ctx, source)
		if err != nil {
			return err
		}
		if !isSealed {
			b.volumes.invalidate()
			if _, err := b.volume(ctx, source); err != nil { // it was removed meanwhile
				return err
			}
			return fault.New(errdefs.ErrFailedPrecondition, "source %s is not sealed", source)
		}
		origin = b.sealOf(source)
	}
	err = b.stage(ctx, c, func(staged string, discard func(context.Context) error) error {
		err := b.zfs.input(ctx, r, func(k kernel, from *os.File) error {
			return k.Receive(staged+"@"+sealName, origin, properties(quota.Limit{}), from)
		})
		var lost *lostError
		if errors.As(err, &lost) && lost.left {
			b.settleLater(ctx, lost, step{op: "receive", happened: b.isThere(staged), undo: discard})
		}
		return explainStream(err, source)
	}, func(staged string) error { return b.checkReceived(ctx, staged) })
	if err != nil {
		return b.explain(ctx, err, name, source)
	}
	b.volumes.doubt() // the kernel knows when it was created, and its properties
	return nil
}

// explainStream names the fault of a stream that was received with err, and a way out.
func explainStream(err error, source string) error {
	var stream *zfsctl.StreamError
	if !errors.As(err, &stream) || isLost(err) {
		return err
	}
	bad := func(text string) error { return fault.New(errdefs.ErrInvalidArgument, "%s: %w", text, err) }
	switch stream.Fault {
	case zfsctl.NoStream:
		return bad("this is not a stream of zfs send")
	case zfsctl.Compound:
		return bad("the stream holds more than one snapshot: send it without -R, -I and -p")
	case zfsctl.Truncated:
		return bad("the stream is cut off: send it again, and wait for its end")
	case zfsctl.Damaged:
		return bad("the stream was damaged on its way, its checksum is wrong: send it again")
	case zfsctl.LacksOrigin:
		return bad("the stream is incremental: name the layer that it builds on, or send a full one")
	case zfsctl.NeedlessOrigin:
		return bad("the stream is a full one, and does not build on another layer: leave the parent out")
	case zfsctl.Resumed:
		return fault.New(errdefs.ErrNotImplemented, "resumed streams are not taken: send the whole stream again, without -t: %w", err)
	case zfsctl.OtherOrigin:
		return fault.New(errdefs.ErrFailedPrecondition, "the stream builds on another snapshot than that of %s: name the layer that it was made from, or send a full one: %w", source, err)
	case zfsctl.Unsupported:
		return fault.New(errdefs.ErrNotImplemented, "the stream needs a feature that this pool or its kernel module lacks: run \"zpool upgrade\", or send it without -L, -c, -e and -w: %w", err)
	}
	return bad("the stream makes no sense to the kernel: send it again, from OpenZFS")
}

// checkReceived checks that a stream has made a filesystem, with the properties of a volume. Returns
// errdefs.ErrInvalidArgument if it has made a block device. The kernel succeeds even if it cannot set properties.
func (b *Backend) checkReceived(ctx context.Context, staged string) error {
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	d, err := b.stats(ctx, staged)
	if err == nil && d.Type != zfsctl.Filesystem {
		err = fault.New(errdefs.ErrInvalidArgument, "the stream does not hold a filesystem")
	}
	if err != nil {
		return err
	}
	if mark, _ := d.Properties.Text(markProperty); mark != markValue {
		return fault.New(errdefs.ErrUnavailable, "the kernel has not set the properties of %s", staged)
	}
	return nil
}
