package zfs

import (
	"context"
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/quota"
)

// Scratch implements cowcommon.Scratcher with a dataset under a name that no volume can have.
func (b *Backend) Scratch(ctx context.Context, fill func(dir string) error) (cowcommon.View, error) {
	name, unlock, err := b.lockStaged(ctx)
	if err != nil {
		return nil, fault.Wrap("make scratch tree", "", err)
	}
	m, err := b.viewed.Acquire(ctx, name, inuse.Viewed, func() (*mountedSnapshot, error) {
		return b.makeScratch(ctx, name, unlock, fill)
	})
	if err != nil {
		return nil, fault.Wrap("make scratch tree", "", err)
	}
	return b.newView(view{b: b, snapshot: m.name, key: name, dir: m.dir}), nil
}

// makeScratch makes the dataset of that name. It calls unlock at the end of the dataset.
func (b *Backend) makeScratch(ctx context.Context, name string, unlock func() error, fill func(dir string) error) (*mountedSnapshot, error) {
	m := &mountedSnapshot{name: b.datasetOf(name), temporary: true, dir: filepath.Join(b.views, name), unlock: unlock}
	discard := func(ctx context.Context) error { return b.discardTree(ctx, m.name) }
	err := b.act(ctx, step{
		op:       "create",
		do:       func(k kernel) error { return k.Create(m.name, properties(quota.Limit{})) },
		happened: func(context.Context) (bool, error) { return false, nil }, // if it has, it may lack properties
		undo:     discard,
	})
	if err != nil {
		return nil, errors.Join(b.explainSpace(ctx, err), b.after(err, func() error { return errors.Join(discard(ctx), unlock()) }))
	}
	if err := b.fillScratch(ctx, m, fill); err != nil {
		return nil, errors.Join(err, b.after(err, func() error { return b.endView(m) }))
	}
	return m, nil
}

// fillScratch mounts a new dataset, fills it, and mounts it again, read-only.
func (b *Backend) fillScratch(ctx context.Context, m *mountedSnapshot, fill func(dir string) error) error {
	if err := b.mountAt(ctx, m.name, m.dir, 0, ""); err != nil {
		return err
	}
	if err := errors.Join(b.explainSpace(ctx, fill(m.dir)), b.unmountAt(ctx, m.dir, false)); err != nil {
		return err
	}
	return b.mountWaiting(ctx, m.name, m.dir, unix.MS_RDONLY, "")
}
