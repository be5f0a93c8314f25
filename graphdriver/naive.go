package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/stream"
)

// NaiveDiffDriver adds the methods of [DiffDriver] to a ProtoDriver by walking trees. It needs only Get and Put of
// the driver. Its cost is in proportion to the size of the layers, not to the changes.
//
// It compares by lstat. Two times of modification are equal if their seconds agree and one of them has no fraction,
// as in Docker's change lists. Times from a tar have none. So it misses an edit within the second of such a time in
// the parent, if the file's size stays the same.
//
// Docker's NaiveDiffDriver makes such edits rarer: it sleeps at the end of each Diff until the second is over. So a
// container of the new layer starts in a later second. This driver does not sleep. Sleeping would delay every commit,
// and still miss such an edit in a layer that came by another way. Programs that need such edits use a driver whose
// filesystem tells which files were written.
//
// A layer that is written to during a diff is read as it changes, see [DiffDriver].
type NaiveDiffDriver struct {
	ProtoDriver

	// IDMap maps the ids in diffs to those of the files in the layers.
	IDMap user.IdentityMapping

	// BestEffortXattrs lets ApplyDiff succeed where extended attributes cannot be set because the
	// filesystem does not have them or the caller may not set them. The layer then lacks them, which is logged.
	BestEffortXattrs bool
}

// NewNaiveDiffDriver makes a complete driver of a driver that keeps layers and does not compare them, by way of a
// *NaiveDiffDriver.
func NewNaiveDiffDriver(driver ProtoDriver, idMap user.IdentityMapping) Driver {
	return &NaiveDiffDriver{ProtoDriver: driver, IDMap: idMap}
}

// Diff returns a tar of the layer's changes since parent. The layer stays held until the reader has returned its last
// byte or is closed. See [DiffDriver].
func (d *NaiveDiffDriver) Diff(id, parent string) (io.ReadCloser, error) {
	dir, err := d.ProtoDriver.Get(id, "")
	if err != nil {
		return nil, fmt.Errorf("diff layer %q: %w", id, err)
	}
	changes, err := d.changes(context.Background(), dir, parent)
	if err != nil {
		return nil, fmt.Errorf("diff layer %q: %w", id, errors.Join(err, d.ProtoDriver.Put(id)))
	}
	return stream.New(context.Background(), func(ctx context.Context, w io.Writer) error {
		if err := layertar.Write(ctx, w, dir, changes, layertar.WriteOptions{IDMap: d.IDMap}); err != nil {
			return fmt.Errorf("diff layer %q: %w", id, err)
		}
		return nil
	}, func() error {
		if err := d.ProtoDriver.Put(id); err != nil {
			return fmt.Errorf("diff layer %q: %w", id, err)
		}
		return nil
	}), nil
}

// Changes lists the layer's changes since parent. See [DiffDriver].
func (d *NaiveDiffDriver) Changes(id, parent string) ([]archive.Change, error) {
	var changes []archive.Change
	err := d.held(id, func(dir string) (err error) {
		changes, err = d.changes(context.Background(), dir, parent)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list changes of layer %q: %w", id, err)
	}
	return changes, nil
}

// DiffSize is the size of the layer's changes since parent, in bytes. See [DiffDriver].
func (d *NaiveDiffDriver) DiffSize(id, parent string) (size int64, err error) {
	ctx := context.Background()
	err = d.held(id, func(dir string) error {
		changes, err := d.changes(ctx, dir, parent)
		if err != nil {
			return err
		}
		size, err = treediff.Size(ctx, dir, changes)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("size the diff of layer %q: %w", id, err)
	}
	return size, nil
}

// ApplyDiff extracts a layer tar into the layer by [ApplyUncompressedLayer] and returns its size in bytes.
// parent is not looked at. See [DiffDriver].
func (d *NaiveDiffDriver) ApplyDiff(id, _ string, diff io.Reader) (size int64, err error) {
	err = d.held(id, func(dir string) (err error) {
		size, err = ApplyUncompressedLayer(dir, diff, &archive.TarOptions{IDMap: d.IDMap, BestEffortXattrs: d.BestEffortXattrs})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("apply to layer %q: %w", id, err)
	}
	return size, nil
}

// changes compares the tree at dir with the layer parent, or with an empty tree for "".
func (d *NaiveDiffDriver) changes(ctx context.Context, dir, parent string) (changes []archive.Change, err error) {
	if parent == "" {
		return treediff.Compare(ctx, dir, "", nil)
	}
	err = d.held(parent, func(base string) (err error) {
		changes, err = treediff.Compare(ctx, dir, base, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("parent %q: %w", parent, err)
	}
	return changes, nil
}

// held calls f with the layer's directory between a Get and its Put.
func (d *NaiveDiffDriver) held(id string, f func(dir string) error) error {
	dir, err := d.ProtoDriver.Get(id, "")
	if err != nil {
		return err
	}
	return errors.Join(f(dir), d.ProtoDriver.Put(id))
}
