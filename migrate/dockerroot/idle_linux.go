package dockerroot

import (
	"context"
	"errors"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Idle returns ErrFailedPrecondition if an engine works on the root at dir, with any driver.
func Idle(ctx context.Context, dir string) (err error) {
	root, err := rootdir.Open(dir)
	if err != nil {
		return rootdir.NotFound(err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	s := &Source{root: root}
	return errors.Join(fault.Wrap("look for users of", root.Path(), s.checkLocks(ctx)), s.locks.Release())
}
