package zfs

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// Send writes the stream of zfs send for top, incremental from base unless base is nil. top must have been cloned from
// base.
func (b *Backend) Send(ctx context.Context, w io.Writer, base, top cowcommon.View) error {
	topView, ok := top.(*view)
	if !ok {
		return fault.Wrap("send volume", "", fault.New(errdefs.ErrInvalidArgument, "not a view of this backend"))
	}
	args := []string{"send"}
	if base != nil {
		baseView, ok := base.(*view)
		if !ok {
			return fault.Wrap("send volume", topView.volume, fault.New(errdefs.ErrInvalidArgument, "base is not a view of this backend"))
		}
		args = append(args, "-i", baseView.snapshot)
	}
	return fault.Wrap("send volume", topView.volume, b.zfs.run(ctx, process{args: append(args, topView.snapshot), out: w, kill: true}))
}

// Receive makes a volume from the stream of a zfs send, and seals it. An incremental stream needs the sealed volume
// that it builds on. zfs checks that source is this volume.
func (b *Backend) Receive(ctx context.Context, name, source string, r io.Reader) error {
	return fault.Wrap("receive volume", name, b.receive(ctx, name, source, r))
}

func (b *Backend) receive(ctx context.Context, name, source string, r io.Reader) (err error) {
	c, err := b.claimNew(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	args := append([]string{"receive", "-u"}, properties(quota.Limit{})...)
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
		args = append(args, "-o", "origin="+b.sealOf(source))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err = b.stage(ctx, c, func(staged string, discard func(context.Context) error) error {
		err := b.zfs.run(ctx, process{args: append(args, staged+"@"+sealName), in: r, kill: true})
		var lost *lostError
		if errors.As(err, &lost) { // the process does not end; a killed process has no *lostError
			b.settleLater(ctx, lost, step{args: args, happened: b.isThere(staged), undo: discard})
		}
		return err
	}, func(staged string) error { return b.checkReceived(ctx, staged) })
	if err != nil {
		return b.explain(ctx, err, name, source)
	}
	b.volumes.doubt() // zfs knows when it was created, and its properties
	return nil
}

// checkReceived checks that a stream has made one filesystem with one snapshot. Returns errdefs.ErrInvalidArgument if
// it has not: a stream of several datasets (zfs send -R) makes more.
func (b *Backend) checkReceived(ctx context.Context, staged string) error {
	out, err := b.zfs.read(context.WithoutCancel(ctx), "list", "-H", "-r", "-t", "all", "-o", "name,type", staged)
	if err != nil {
		return err
	}
	want := staged + "\tfilesystem\n" + staged + "@" + sealName + "\tsnapshot\n"
	if string(out) != want {
		return fault.New(errdefs.ErrInvalidArgument, "the stream does not hold one snapshot of one filesystem, but %q", strings.ReplaceAll(string(out), staged, ""))
	}
	return nil
}
