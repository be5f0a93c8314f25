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
		return typed(err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return fault.Wrap("see who uses", root.Path(), (&Source{root: root}).checkLocks(ctx))
}
