package layerstore

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// ParseLimitOrNone reads a size, or none as 0 bytes.
func ParseLimitOrNone(size string) (uint64, error) {
	if size == "none" {
		return 0, nil
	}
	return ParseLimit(size)
}

// ParseLimit reads a size that is not 0.
func ParseLimit(size string) (uint64, error) {
	if bytes, err := units.RAMInBytes(size); err == nil && bytes == 0 {
		return 0, fault.Said(errdefs.ErrInvalidArgument, "size %q: a limit is more than 0; for no limit, use none", size)
	}
	return quota.ParseSize(size)
}

// SetLimit sets the limit of a layer; 0 bytes removes it. name is that by which the layer was named.
func (s *Store) SetLimit(ctx context.Context, v cowcommon.Volume, name string, bytes uint64) error {
	user, err := s.UserOf(v)
	if err != nil {
		return err
	}
	if user != "" && bytes != 0 {
		return fault.Said(errdefs.ErrFailedPrecondition, "layer %s is part of %s and is not written to any more; make a layer from it "+
			"and limit that: cowshed create NAME --parent %s --size SIZE --read-write", ShortName(v.Name), user, name)
	}
	return s.Driver.SetLimit(ctx, v.Name, bytes)
}
