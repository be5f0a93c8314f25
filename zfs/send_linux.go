package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

// Send writes the stream of zfs send for top, incremental from base unless that is nil. top has to have been
// cloned from base.
func (b *Backend) Send(ctx context.Context, w io.Writer, base, top cowcommon.View) error {
	topView, ok := top.(*view)
	if !ok {
		return fmt.Errorf("zfs: send: not a view of this backend: %w", errdefs.ErrInvalidArgument)
	}
	args := []string{"send"}
	if base != nil {
		baseView, ok := base.(*view)
		if !ok {
			return fmt.Errorf("zfs: send %s: base is not a view of this backend: %w", topView.volume, errdefs.ErrInvalidArgument)
		}
		args = append(args, "-i", baseView.snapshot)
	}
	if err := b.zfs.pipe(ctx, nil, w, append(args, topView.snapshot)...); err != nil {
		return fmt.Errorf("zfs: send %s: %w", topView.volume, err)
	}
	return nil
}

// Receive makes a volume from the stream of a zfs send, and seals it. An incremental stream needs the sealed
// volume that it builds on, which zfs finds to be the right one.
func (b *Backend) Receive(ctx context.Context, name, source string, r io.Reader) error {
	if err := b.receive(ctx, name, source, r); err != nil {
		return fmt.Errorf("zfs: receive %s: %w", name, err)
	}
	return nil
}

func (b *Backend) receive(ctx context.Context, name, source string, r io.Reader) (err error) {
	if err := b.checkFree(ctx, name); err != nil {
		return err
	}
	args := append([]string{"receive", "-u"}, properties(quota.Limit{})...)
	if source != "" {
		d, err := b.volume(ctx, source)
		if err != nil {
			return err
		}
		if !d.sealed {
			return fmt.Errorf("source %s is not sealed: %w", source, errdefs.ErrFailedPrecondition)
		}
		args = append(args, "-o", "origin="+b.datasetOf(source)+"@"+sealName)
	}
	staged := b.datasetOf(temporaryName(stagingPrefix))
	renamed := false
	defer func() {
		if renamed {
			return
		}
		exists, existsErr := b.exists(ctx, staged)
		err = errors.Join(err, existsErr)
		if exists {
			_, destroyErr := b.zfs.run(context.WithoutCancel(ctx), "destroy", "-r", staged)
			err = errors.Join(err, destroyErr)
		}
	}()
	if err := b.zfs.pipe(ctx, r, nil, append(args, staged+"@"+sealName)...); err != nil {
		return err
	}
	if err := b.checkReceived(ctx, staged); err != nil {
		return err
	}
	if _, err := b.zfs.run(ctx, "rename", staged, b.datasetOf(name)); err != nil {
		return b.explain(ctx, err, name, source)
	}
	renamed = true
	// When it was created, and what of it counts, zfs knows best.
	b.volumes.invalidate()
	return b.volumes.changed(func(map[string]dataset) {})
}

// checkReceived finds out whether a stream has made what it should: one filesystem with one snapshot. A
// stream of several datasets (zfs send -R) makes more.
func (b *Backend) checkReceived(ctx context.Context, staged string) error {
	out, err := b.zfs.run(context.WithoutCancel(ctx), "list", "-H", "-r", "-t", "all", "-o", "name,type", staged)
	if err != nil {
		return err
	}
	want := staged + "\tfilesystem\n" + staged + "@" + sealName + "\tsnapshot\n"
	if string(out) != want {
		return fmt.Errorf("the stream does not hold one snapshot of one filesystem, but %q: %w", strings.ReplaceAll(string(out), staged, ""), errdefs.ErrInvalidArgument)
	}
	return nil
}

// exists asks whether a dataset is there that the index does not know.
func (b *Backend) exists(ctx context.Context, dataset string) (bool, error) {
	_, err := b.zfs.run(context.WithoutCancel(ctx), "list", "-H", "-o", "name", dataset)
	if isCommandError(err) {
		return false, nil
	}
	return err == nil, err
}
