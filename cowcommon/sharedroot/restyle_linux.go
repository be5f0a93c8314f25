package sharedroot

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

func (b *Backend) setRootStyle(ctx context.Context, name string, style cowcommon.RootStyle) error {
	if _, err := b.Backend.Stat(ctx, name); err != nil {
		return err
	}
	s, _, err := b.look(ctx, name)
	switch {
	case err != nil:
		return err
	case style != cowcommon.SharedRoot && s != stateNone:
		return b.fold(ctx, name)
	case style == cowcommon.SharedRoot && s != stateShared:
		return fault.New(errdefs.ErrNotImplemented, "a volume cannot get a shared root later: clone its parent again")
	}
	return nil
}
