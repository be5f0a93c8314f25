package cowdriver

import (
	"context"
	"errors"
	"os"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/graphdriver"
)

var (
	_ graphdriver.DiffPathDriver    = (*Driver)(nil)
	_ graphdriver.CustomImageDriver = (*Driver)(nil)
)

// DiffPath makes a directory with the changes of a layer since its parent, in the form of overlayfs. On btrfs files
// share their data with the layer's. On ZFS they do if its version and settings clone blocks.
func (d *Driver) DiffPath(id string) (path string, release func() error, err error) {
	view, err := d.diffPath(d.ctx, id)
	if err != nil {
		return "", nil, d.wrap("show the diff of layer", id, err)
	}
	return view.Dir(), func() error { return d.wrap("release the diff of layer", id, view.Close()) }, nil
}

func (d *Driver) diffPath(ctx context.Context, id string) (cowcommon.View, error) {
	if err := cowcommon.CheckID(id); err != nil {
		return nil, err
	}
	v, err := d.backend.Stat(ctx, id)
	if err != nil {
		return nil, err
	}
	c, err := d.Compare(ctx, id, v.Parent, cowcommon.Auto)
	if err != nil {
		return nil, err
	}
	view, err := cowcommon.Scratch(ctx, d.backend, func(dir string) error { return d.writeOverlay(ctx, dir, c) })
	if closeErr := c.Close(); closeErr != nil {
		if err == nil {
			closeErr = errors.Join(closeErr, view.Close())
		}
		err = errors.Join(err, closeErr)
	}
	return view, err
}

// writeOverlay writes the changes of a comparison into an empty directory.
func (d *Driver) writeOverlay(ctx context.Context, dir string, c *cowcommon.Comparison) error {
	src, err := os.Open(c.Dir())
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer dst.Close()
	_, err = treecopy.Overlay(ctx, dst, src, c.Changes, treecopy.Options{Logger: d.log})
	return err
}

// GetCustomImageInfos lists Options.BaseImages.
func (d *Driver) GetCustomImageInfos() ([]graphdriver.CustomImageInfo, error) {
	return append([]graphdriver.CustomImageInfo{}, d.opts.BaseImages...), nil
}
