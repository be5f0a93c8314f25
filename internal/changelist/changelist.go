// Package changelist checks and orders lists of changes between two trees.
package changelist

import (
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/treeat"
)

// Sorted returns the changes by path, so that each directory comes before all that is below it. It leaves changes as it
// is. Returns errdefs.ErrInvalidArgument if a path is not absolute or not clean.
func Sorted(changes []archive.Change) ([]archive.Change, error) {
	for _, c := range changes {
		if !strings.HasPrefix(c.Path, "/") || path.Clean(c.Path) != c.Path {
			return nil, fault.New(errdefs.ErrInvalidArgument, "change of %s: want an absolute, clean path", treeat.Quote(c.Path))
		}
	}
	byPath := func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) }
	if !slices.IsSortedFunc(changes, byPath) {
		changes = slices.Clone(changes)
		slices.SortStableFunc(changes, byPath)
	}
	return changes, nil
}
