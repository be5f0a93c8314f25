package btrfs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/staging"
)

// Scratch implements cowcommon.Scratcher with a subvolume in the directory views.
func (b *Backend) Scratch(ctx context.Context, fill func(dir string) error) (cowcommon.View, error) {
	name := staging.Name("scratch~")
	s, err := b.snapshots.Acquire(ctx, name, inuse.Viewed, func() (*snapshot, error) { return b.makeScratch(name, fill) })
	if err != nil {
		return nil, fault.Wrap("make scratch tree", "", err)
	}
	v := &view{b: b, snapshot: name, dir: s.subvolume}
	v.close = sync.OnceValue(v.release)
	return v, nil
}

func (b *Backend) makeScratch(name string, fill func(dir string) error) (*snapshot, error) {
	if err := btrfsctl.CreateSubvolume(int(b.dirs.views.Fd()), name, nil); err != nil {
		return nil, err
	}
	dir, err := b.openSubvolume(b.dirs.views, name)
	if err != nil {
		return nil, errors.Join(err, b.destroy(b.dirs.views, name))
	}
	s := &snapshot{subvolume: dir}
	if err = fill(dir.Name()); err == nil {
		if err = btrfsctl.SetReadOnly(dir.fd(), true); err != nil {
			err = fmt.Errorf("make it read-only: %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, b.closeSnapshot(name, s))
	}
	dir.info.ReadOnly = true
	return s, nil
}
