package zfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Seal takes the snapshot that makes a volume sealed: from then on it is mounted read-only.
func (b *Backend) Seal(ctx context.Context, name string) error {
	_, settle, err := b.seal(ctx, name)
	if err == nil {
		err = settle(true)
	}
	if err != nil {
		return fmt.Errorf("zfs: seal %s: %w", name, err)
	}
	return nil
}

// seal seals a volume, unless it is sealed, and returns the snapshot that does. Nobody else can use the volume until
// the caller calls settle; settle(false) undoes the sealing. errdefs.ErrFailedPrecondition: it is mounted.
func (b *Backend) seal(ctx context.Context, name string) (seal string, settle func(keep bool) error, err error) {
	d, err := b.volume(ctx, name)
	if err != nil {
		return "", nil, err
	}
	seal = b.datasetOf(name) + "@" + sealName
	if d.sealed {
		return seal, func(bool) error { return nil }, nil
	}
	done, err := b.claim(ctx, name)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, done())
		}
	}()
	// As it is now that nobody else can change it.
	if d, err = b.volume(ctx, name); err != nil {
		return "", nil, err
	}
	if d.sealed {
		return seal, func(bool) error { return done() }, nil
	}
	mounted, err := b.isMounted(b.datasetOf(name))
	if err != nil {
		return "", nil, err
	}
	if mounted {
		return "", nil, fmt.Errorf("dataset %s is mounted: %w", b.datasetOf(name), errdefs.ErrFailedPrecondition)
	}
	if err := b.snapshot(ctx, name, seal); err != nil {
		return "", nil, err
	}
	if err := b.volumes.update(name, func(d *dataset) { d.sealed = true }); err != nil {
		return "", nil, errors.Join(err, b.unseal(ctx, name))
	}
	return seal, func(keep bool) error {
		if keep {
			return done()
		}
		return errors.Join(b.unseal(ctx, name), done())
	}, nil
}

// unseal undoes the sealing of a volume, unless others have been cloned from it by now.
func (b *Backend) unseal(ctx context.Context, name string) error {
	_, err := b.zfs.run(context.WithoutCancel(ctx), "destroy", b.datasetOf(name)+"@"+sealName)
	b.volumes.invalidate()
	if isCommandError(err) {
		b.log.Debug("zfs: stays sealed", "volume", name, "error", err)
		return nil
	}
	return err
}

// originFor returns the snapshot that a clone of source is to be made from: the one that seals it, taken now
// if need be, or one for this clone alone while somebody has source mounted. The caller calls settle with
// whether there is a clone; where there is none, what was taken for it is undone.
func (b *Backend) originFor(ctx context.Context, source string) (origin string, settle func(cloned bool) error, err error) {
	origin, settle, err = b.seal(ctx, source)
	if errdefs.IsFailedPrecondition(err) {
		return b.snapshotInUse(ctx, source)
	}
	return origin, settle, err
}

// snapshotInUse takes a snapshot of a volume that somebody has mounted, for one clone.
func (b *Backend) snapshotInUse(ctx context.Context, source string) (origin string, settle func(cloned bool) error, err error) {
	origin = b.datasetOf(source) + "@" + temporaryName(clonePrefix)
	if err := b.snapshot(ctx, source, origin); err != nil {
		return "", nil, err
	}
	return origin, func(cloned bool) error {
		if cloned {
			return nil
		}
		_, err := b.zfs.run(context.WithoutCancel(ctx), "destroy", origin)
		return err
	}, nil
}
