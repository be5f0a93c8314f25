package layerstore

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
)

// CreateOptions says how a layer is made.
type CreateOptions struct {
	Parent     cowcommon.Volume // to copy; the zero Volume: none
	Size       string           // "": none, or that of the driver's options if ReadWrite is set
	MountLabel string           // SELinux label of the files
	RootStyle  string           // "": that of the driver's options if ReadWrite is set
	ReadWrite  bool             // a layer for a container
}

// Create makes a layer.
func (s *Store) Create(ctx context.Context, name string, opts CreateOptions) error {
	if err := CheckNewLayer(name); err != nil {
		return err
	}
	if opts.RootStyle == string(cowcommon.SharedRoot) && opts.Parent.Name == "" {
		return fault.Said(errdefs.ErrInvalidArgument, "the root style %s needs a parent: an empty layer shares nothing", opts.RootStyle)
	}
	create := &graphdriver.CreateOpts{MountLabel: opts.MountLabel, StorageOpt: make(map[string]string)}
	if opts.Size != "" {
		create.StorageOpt["size"] = opts.Size
	}
	if opts.RootStyle != "" {
		create.StorageOpt["root_style"] = opts.RootStyle
	}
	if err := s.Live.CheckParent(ctx, name, opts.Parent.Name); err != nil {
		return err
	}
	if err := s.Live.NewLayer(ctx, name); err != nil {
		return err
	}
	driver := s.Driver.WithContext(ctx)
	if opts.ReadWrite {
		return driver.CreateReadWrite(name, opts.Parent.Name, create)
	}
	return driver.Create(name, opts.Parent.Name, create)
}
