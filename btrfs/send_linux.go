package btrfs

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// Send writes the btrfs send stream of top, as "btrfs send" does, incremental from base unless that is nil.
func (b *Backend) Send(ctx context.Context, w io.Writer, base, top cowcommon.View) error {
	topView, ok := top.(*view)
	if !ok {
		return fmt.Errorf("btrfs: send: not a view of this backend: %w", errdefs.ErrInvalidArgument)
	}
	parent := uint64(0)
	if base != nil {
		baseView, ok := base.(*view)
		if !ok {
			return fmt.Errorf("btrfs: send %s: base is not a view of this backend: %w", topView.volume, errdefs.ErrInvalidArgument)
		}
		info, err := btrfsctl.Info(int(baseView.dir.Fd()))
		if err != nil {
			return fmt.Errorf("btrfs: send %s: base: %w", topView.volume, err)
		}
		parent = info.ID
	}
	err := b.send(ctx, topView, parent, 0, func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	})
	if err != nil {
		return fmt.Errorf("btrfs: send %s: %w", topView.volume, err)
	}
	return nil
}
