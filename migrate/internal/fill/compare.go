package fill

import (
	"context"
	"io"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/quota"
)

// Compared is a volume that is compared with its source.
type Compared struct {
	Volume string
	Parent string // the volume of the layer below, "" for none
	// Made is how the volume was made just now, "" if it was made before.
	Made migrate.How
}

// Compare compares the volume of a layer with its source. It compares a layer of an image with the layer's tar too: others
// may rely on the layer's name, and the source may be an attacker's. writeTar reassembles the tar, and returns ErrNotFound
// if its parts are not kept. Returns ErrDataLoss if something differs.
//
// A volume that was made just now is compared with its source only if nothing else shows that they are equal. The tar is
// enough, and so is a copy-on-write copy of the whole volume.
func Compare(ctx context.Context, backend cowcommon.Backend, layer *migrate.Layer, content *migrate.Content, c Compared, writeTar func(io.Writer) error) error {
	hasTar := layer.Kind == migrate.ImageLayer || layer.DiffID != ""
	if hasTar {
		err := VerifyTar(ctx, backend, c.Volume, c.Parent, layer.DiffID, writeTar)
		if errdefs.IsNotFound(err) {
			err = VerifyDigest(ctx, backend, c.Volume, c.Parent, layer.DiffID)
		}
		if err != nil {
			return err
		}
	}
	if c.Made == migrate.Cloned || c.Made != "" && hasTar {
		return nil
	}
	return Verify(ctx, backend, c.Volume, c.Parent, content)
}

// Limit is the limit of a layer's volume.
func Limit(layer *migrate.Layer) quota.Limit {
	if layer.Limit <= 0 {
		return quota.Limit{}
	}
	return quota.Limit{Bytes: uint64(layer.Limit), Scope: quota.ScopeLayer}
}
