package live

import (
	"context"
	"errors"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// Adopt makes name a layer with the content of a directory, which stays as it is. A subvolume that the Backend can adopt is
// adopted; snapshot says so. Other directories are copied, by reflink on the same filesystem. Nobody may change them
// meanwhile. dir is absolute. If Adopt fails, or a crash interrupts it, it leaves nothing.
func (l *Layers) Adopt(ctx context.Context, name, dir string, opts cowcommon.VolumeOptions) (snapshot bool, err error) {
	if err := cowcommon.CheckID(name); err != nil {
		return false, err
	}
	if IsMoment(name) {
		return false, fault.New(errdefs.ErrInvalidArgument, "layer name %s is of the form that moments have; choose another", name)
	}
	unlock, err := l.begin(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := l.newLayers(ctx, name); err != nil {
		return false, fault.Wrap("adopt directory", dir, err)
	}
	err = cowcommon.Adopt(ctx, l.backend, name, "", dir, opts)
	if !errdefs.IsNotImplemented(err) {
		return err == nil, err
	}
	changes, err := treediff.Compare(ctx, dir, "", nil)
	if err != nil {
		return false, err
	}
	r := newMoment(name, "") // its volume is the layer's, until it is complete
	if err := l.save(pendingDir, r); err != nil {
		return false, err
	}
	err = l.backend.Create(ctx, r.Volume, opts)
	if err == nil {
		err = l.apply(ctx, r.Volume, func(root *os.File) error { return copyChanges(ctx, root, dir, changes) })
	}
	if err == nil {
		err = cowcommon.Rename(ctx, l.backend, r.Volume, name)
	}
	if err != nil {
		return false, errors.Join(err, l.endPending(context.WithoutCancel(ctx), r, l.own()))
	}
	return false, l.forget(pendingDir, r.Volume)
}
