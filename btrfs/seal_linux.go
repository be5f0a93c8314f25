package btrfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// Seal makes a volume that nobody uses read-only for good, and what it holds survive a power cut. Sealing it
// twice does nothing. errdefs.ErrFailedPrecondition: it is in use, and was not changed.
func (b *Backend) Seal(ctx context.Context, name string) error {
	if err := b.sealForGood(ctx, name); err != nil {
		return fmt.Errorf("btrfs: seal %s: %w", name, err)
	}
	return nil
}

func (b *Backend) sealForGood(ctx context.Context, name string) (err error) {
	opened, err := b.openVolume(name)
	if err != nil {
		return err
	}
	if err := opened.Close(); err != nil || opened.info.ReadOnly {
		return err
	}
	dir, done, err := b.claim(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if dir.info.ReadOnly { // by now
		return nil
	}
	if err := btrfsctl.SetReadOnly(dir.fd(), true); err != nil {
		return err
	}
	if err := unix.Syncfs(dir.fd()); err != nil {
		return errors.Join(err, btrfsctl.SetReadOnly(dir.fd(), false))
	}
	return nil
}

// seal makes a volume read-only unless somebody uses it: a descriptor that is open for writing would go
// on writing. The volume cannot be used until settle is called, with whether it is to stay sealed: it is not
// if what it was sealed for failed.
//
// Its error is that the volume is not there, or cannot be sealed; not that it is in use.
func (b *Backend) seal(ctx context.Context, name string) (settle func(keep bool) error, err error) {
	dir, done, err := b.claim(ctx, name)
	if errors.Is(err, errdefs.ErrFailedPrecondition) {
		return func(bool) error { return nil }, nil
	}
	if err != nil {
		return nil, err
	}
	settle = func(keep bool) error {
		var err error
		if !keep && !dir.info.ReadOnly {
			err = btrfsctl.SetReadOnly(dir.fd(), false)
		}
		return errors.Join(err, done())
	}
	if err := btrfsctl.SetReadOnly(dir.fd(), true); err != nil {
		return nil, errors.Join(fmt.Errorf("seal %s: %w", name, err), settle(false))
	}
	return settle, nil
}
