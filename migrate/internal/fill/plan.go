package fill

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/trees"
	"github.com/cowshed/cowshed/quota"
)

// How says how the data of a layer would come into a home, and how many bytes that takes. It changes nothing.
func How(ctx context.Context, backend cowcommon.Backend, home string, layer *migrate.Layer, content *migrate.Content) (migrate.How, int64, error) {
	to, err := detect.Probe(home)
	if err != nil {
		return "", 0, err
	}
	_, adopts := cowcommon.As[cowcommon.Adopter](backend)
	return HowTo(ctx, adopts, to, layer, content)
}

// HowNew is How for a home that need not be there yet.
func HowNew(ctx context.Context, home string, layer *migrate.Layer, content *migrate.Content) (migrate.How, int64, error) {
	to, err := detect.Probe(home)
	if err != nil {
		return "", 0, err
	}
	return HowTo(ctx, Adopts(to), to, layer, content)
}

// Adopts reports whether homes on that filesystem adopt volumes.
func Adopts(to detect.Filesystem) bool { return to.Type == "btrfs" || to.Type == "zfs" }

// HowTo is How into a home on that filesystem. adopts says whether volumes can be adopted there.
func HowTo(ctx context.Context, adopts bool, to detect.Filesystem, layer *migrate.Layer, content *migrate.Content) (migrate.How, int64, error) {
	from, err := detect.Probe(path(content.Dir))
	if err != nil {
		return "", 0, err
	}
	same := from.Type == to.Type
	clones := adopts && content.Form == migrate.Whole && content.Volume != ""
	switch to.Type {
	case "zfs":
		// The source may have mounted its dataset where no list of mounts shows it.
		if clones = clones && same; clones {
			if clones, err = zfsClones(content.Volume, to.Source); err != nil {
				return "", 0, err
			}
		}
	default:
		same = same && from.Source == to.Source
		clones = clones && same
	}
	switch {
	case clones:
		return migrate.Cloned, 0, nil
	case same && to.Type == "btrfs":
		return migrate.Reflinked, 0, nil
	case layer.Size >= 0:
		return migrate.Copied, layer.Size, nil
	}
	size, err := trees.Size(ctx, content.Dir)
	return migrate.Copied, size, err
}

// CheckSpace returns an ENOSPC error if the data of layers needs more space than the filesystem of a home has. Layers that
// the target has need none.
func CheckSpace(ctx context.Context, home string, source migrate.Source, inv *migrate.Inventory,
	has func(*migrate.Layer) (bool, error), how func(*migrate.Layer, *migrate.Content) (migrate.How, int64, error),
) error {
	needed := uint64(0)
	for i := range inv.Layers {
		is, err := has(&inv.Layers[i])
		if err != nil {
			return err
		}
		if is {
			continue
		}
		content, err := source.Open(ctx, inv.Layers[i].ID)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			continue // a problem of that layer
		}
		_, n, err := how(&inv.Layers[i], content)
		if err := errors.Join(err, content.Close()); err != nil {
			return err
		}
		// The source says how large its layers are, and may say anything.
		if needed += uint64(max(n, 0)); needed > math.MaxInt64 {
			needed = math.MaxInt64
		}
	}
	to, err := detect.Probe(home) // it need not be there yet
	if err != nil {
		return err
	}
	free, err := freeSpace(to.Path)
	if err != nil {
		return err
	}
	if needed > free {
		return fmt.Errorf("the layers need %s, and %s has %s: %w", quota.FormatSize(needed), home, quota.FormatSize(free), syscall.ENOSPC)
	}
	return nil
}
