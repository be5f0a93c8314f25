//go:build cgo

package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/snapshotter"
)

// cowshedSnapshotter is this project's snapshotter with its native differ, called as containerd's are.
type cowshedSnapshotter struct {
	*containerd
	differ *snapshotter.Differ
}

func newCowshedSnapshotter(root, work string, style cowcommon.RootStyle) (contender, error) {
	store, err := openStore(work)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	home := filepath.Join(root, "btrfs")
	var backend cowcommon.Backend
	backend, err = btrfs.Open(ctx, home, btrfs.Options{})
	if err != nil {
		return nil, err
	}
	if style == cowcommon.SharedRoot {
		shared, err := sharedroot.New(ctx, backend, home, sharedroot.Options{})
		if err != nil {
			return nil, errors.Join(err, backend.Close())
		}
		backend = shared
	}
	s, err := snapshotter.New(ctx, filepath.Join(root, "snapshotter"), backend, snapshotter.Options{RootStyle: style})
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	differ := snapshotter.NewDiffer(s, store)
	return &cowshedSnapshotter{containerdOf(s, store, differ, differ), differ}, nil
}

func (*cowshedSnapshotter) name() string { return "cowshed" }

// close also checks that the native comparison was measured and not a silent walk.
func (c *cowshedSnapshotter) close() error {
	return errors.Join(checkNative(c.differ.CompareStats()), c.containerd.close())
}
