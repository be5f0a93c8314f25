package zfs

import (
	"context"
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
// base.
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
	err := b.zfs.output(ctx, "send", func(k kernel, to *os.File) error {
		return k.Send(topView.snapshot, from, to)
	}, func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	})
	return fault.Wrap("send volume", topView.volume, err)
}

// Receive makes a volume from the stream of a zfs send of one snapshot, and seals it. An incremental stream needs the
// sealed volume that it builds on. The kernel checks that source is this volume. Returns errdefs.ErrInvalidArgument if
// the stream holds something else.
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
		isSealed, err := b.isSealed(source)
		if err != nil {
			return err
		}
		if !isSealed {
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
		if errors.Is(err, unix.EINVAL) {
			return fault.New(errdefs.ErrInvalidArgument, "the stream does not hold one snapshot of one filesystem, or is cut off: %w", err)
		}
		return err
	}, func(staged string) error { return b.checkReceived(ctx, staged) })
	if err != nil {
		return b.explain(ctx, err, name, source)
	}
	b.volumes.doubt() // the kernel knows when it was created, and its properties
	return nil
}

// checkReceived checks that a stream has made a filesystem, with the properties of a volume. Returns
// errdefs.ErrInvalidArgument if it has made a block device. The kernel succeeds even if it cannot set properties.
func (b *Backend) checkReceived(ctx context.Context, staged string) error {
	d, err := b.stats(context.WithoutCancel(ctx), staged)
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
