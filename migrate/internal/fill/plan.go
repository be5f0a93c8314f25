package fill

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/trees"
	"github.com/cowshed/cowshed/quota"
)

// How says how the data of a layer would come into the home of a Backend, and how many bytes that takes. below says how the
// layer below would come, and parent is its volume if it is there already. It changes nothing.
func How(ctx context.Context, backend cowcommon.Backend, home string, layer *migrate.Layer, content *migrate.Content, below migrate.Coming, parent string) (migrate.How, int64, error) {
	if cowcommon.Place(backend) != "" {
		home = "" // it does not tell where the volumes are
	}
	return HowTo(ctx, home, layer, content, below, func(ctx context.Context, source, planned string) error {
		return cowcommon.CheckAdopt(ctx, backend, parent, source, planned)
	})
}

// HowTo is How where adopts decides whether a volume can be adopted, as cowcommon.Adopter.CheckAdopt. The home need not be
// there yet. It is "" if it is not on the filesystem of the volumes.
func HowTo(ctx context.Context, home string, layer *migrate.Layer, content *migrate.Content, below migrate.Coming, adopts func(ctx context.Context, source, planned string) error) (migrate.How, int64, error) {
	if content.Form == migrate.Whole && content.Volume != "" && (below.How == "" || below.How == migrate.Cloned) {
		err := adopts(ctx, sourceOf(content), below.Volume)
		if !errdefs.IsNotImplemented(err) {
			return migrate.Cloned, 0, err
		}
	}
	reflinks, err := reflinksTo(home, content)
	switch {
	case err != nil:
		return "", 0, err
	case reflinks:
		return migrate.Reflinked, 0, nil
	case layer.Size >= 0:
		return migrate.Copied, layer.Size, nil
	}
	size, err := trees.Size(ctx, content.Dir)
	return migrate.Copied, size, err
}

// reflinksTo reports whether files of a layer can share their data with files in a home.
func reflinksTo(home string, content *migrate.Content) (bool, error) {
	if home == "" {
		return false, nil
	}
	from, err := detect.Probe(path(content.Dir))
	if err != nil {
		return false, err
	}
	to, err := detect.Probe(home)
	same := to.Type == from.Type && to.Source == from.Source
	return same && to.Type == "btrfs", err
}

// HasRoom is a check of the space that the volumes of a Backend have, as CheckSpace takes it.
func HasRoom(backend cowcommon.Backend, home string) func(ctx context.Context, needed uint64) error {
	return HasRoomBy(cmp.Or(cowcommon.Place(backend), home), home, func(ctx context.Context) (uint64, error) { return cowcommon.Free(ctx, backend) })
}

// HasRoomBy is HasRoom where measure says how much space there is in place, as cowcommon.Spacer.Free. If it returns
// errdefs.ErrNotImplemented, the filesystem of the home has the space. The home need not be there yet.
func HasRoomBy(place, home string, measure func(ctx context.Context) (uint64, error)) func(ctx context.Context, needed uint64) error {
	return func(ctx context.Context, needed uint64) error {
		free, err := measure(ctx)
		if errdefs.IsNotImplemented(err) {
			return HasRoomAt(home, needed)
		}
		if err != nil {
			return err
		}
		return enough(needed, free, place)
	}
}

// HasRoomAt returns an ENOSPC error if the filesystem of a directory has less space than is needed. The directory need not be
// there yet.
func HasRoomAt(dir string, needed uint64) error {
	to, err := detect.Probe(dir)
	if err != nil {
		return err
	}
	free, err := freeSpace(to.Path)
	if err != nil {
		return err
	}
	return enough(needed, free, dir)
}

func enough(needed, free uint64, place string) error {
	if needed > free {
		return fmt.Errorf("the layers need %s, and %s has %s: %w", quota.FormatSize(needed), place, quota.FormatSize(free), syscall.ENOSPC)
	}
	return nil
}

// CheckSpace returns the error of hasRoom for the data of layers. Layers that the target has need no space.
func CheckSpace(ctx context.Context, hasRoom func(ctx context.Context, needed uint64) error, inv *migrate.Inventory, has func(*migrate.Layer) (bool, error), forecast *migrate.Forecast) error {
	needed := uint64(0)
	for i := range inv.Layers {
		is, err := has(&inv.Layers[i])
		if err != nil {
			return err
		}
		if is {
			continue
		}
		_, n, err := forecast.Next(ctx, &inv.Layers[i])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			continue // a problem of that layer
		}
		// The source says how large its layers are, and may say anything.
		if needed += uint64(max(n, 0)); needed > math.MaxInt64 {
			needed = math.MaxInt64
		}
	}
	return hasRoom(ctx, needed)
}
