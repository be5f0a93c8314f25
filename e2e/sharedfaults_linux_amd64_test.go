package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// noteLeft begins the differences that may remain while a home is open: a note without a volume says nothing. The note of a
// removed volume goes with the next sync, and others go at the next lone start.
var noteLeft = []string{"left: shared/"}

// scratchLeft begins the difference that may remain while a home is open, if a directory cannot be removed: that of a look whether an
// overlay has the upper of a volume. It goes at the next start.
var scratchLeft = []string{"left: roots/@upper-"}

// sharedFaultOperations are those of shared roots alone.
func sharedFaultOperations(s system) []faultOperation {
	isManifold := func(d *cowdriver.Driver, ids ...string) error {
		for _, id := range ids {
			diffs, err := manifoldDiffs(d, id)
			if err == nil && len(diffs) > 0 {
				err = fmt.Errorf("layer %s: %q", id, diffs)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	hasStyle := func(ctx context.Context, d *cowdriver.Driver, id string, want cowcommon.RootStyle) error {
		if got, err := styleOf(ctx, d, id); err != nil || got != want {
			return fmt.Errorf("layer %s is %s: %w", id, got, err)
		}
		return nil
	}
	cloneInUse := func(name string, readWrite bool, style cowcommon.RootStyle) faultOperation {
		return faultOperation{
			name: name,
			prepare: func(_ context.Context, d *cowdriver.Driver) error {
				_, err := d.Get(manifold, "")
				return err
			},
			run: func(ctx context.Context, d *cowdriver.Driver) error { return cloneManifold(ctx, d, readWrite) },
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(d.Put(manifold), isThere(ctx, d, "new", manifold, false, 0), hasStyle(ctx, d, "new", style),
					hasStyle(ctx, d, manifold, cowcommon.SharedRoot), isManifold(d, "new", manifold))
			},
			broken: viewLeft,
		}
	}
	operations := []faultOperation{
		{
			name: "fold",
			run:  foldManifold,
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(hasStyle(ctx, d, manifold, cowcommon.SnapshotRoot), isManifold(d, manifold))
			},
		},
		{
			name:    "unfold",
			prepare: foldManifold,
			run:     unfoldManifold,
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(hasStyle(ctx, d, manifold, cowcommon.SharedRoot), isManifold(d, manifold))
			},
			broken: append([]string{"left: views/manifold"}, viewLeft...),
		},
		cloneInUse("clone in use", true, cowcommon.SharedRoot),
		cloneInUse("clone in use and fold", false, cowcommon.SnapshotRoot),
		{
			name: "view",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				view, err := d.Backend().View(ctx, manifold)
				if err != nil {
					return err
				}
				content, err := os.ReadFile(filepath.Join(view.Dir(), "dir/changed"))
				if err == nil && string(content) != "new" {
					err = errors.New("success, and the view shows something else")
				}
				return errors.Join(err, view.Close())
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return isManifold(d, manifold) },
			broken: append([]string{"left: views/manifold"}, viewLeft...),
		},
		{
			name: "fork",
			run:  forkManifold,
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isThere(ctx, d, "new", manifold, true, 0), isThere(ctx, d, "renamed", "new", false, 0),
					hasStyle(ctx, d, "new", cowcommon.SharedRoot), hasStyle(ctx, d, "renamed", cowcommon.SharedRoot), isManifold(d, "new", "renamed"))
			},
		},
	}
	if s.driver == "btrfs" { // ZFS exchanges no volumes
		operations = append(operations, faultOperation{
			name:    "exchange",
			prepare: foldChild,
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				return cowcommon.Exchange(ctx, d.Backend(), manifold, "child")
			},
			again: func(ctx context.Context, d *cowdriver.Driver) error {
				style, err := styleOf(ctx, d, "child")
				if err != nil || style == cowcommon.SharedRoot { // the step after the exchange has failed
					return err
				}
				return cowcommon.Exchange(ctx, d.Backend(), manifold, "child")
			},
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(hasStyle(ctx, d, manifold, cowcommon.SnapshotRoot), hasContent(d, manifold),
					hasStyle(ctx, d, "child", cowcommon.SharedRoot), isManifold(d, "child"))
			},
		})
	}
	return operations
}
