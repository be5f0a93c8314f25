package migrate

import (
	"context"
	"io"
)

// Removed is the Source of a root in which nothing is left, as after an interrupted Finish. Reading it returns err,
// which says so. Finish takes the removal of such a source as done if it was begun, and cannot begin it.
func Removed(err error) Source { return removed{err} }

type removed struct{ err error }

func (r removed) Inventory(context.Context) (*Inventory, error)        { return nil, r.err }
func (r removed) Open(context.Context, string) (*Content, error)       { return nil, r.err }
func (r removed) Parts(context.Context, string) (io.ReadCloser, error) { return nil, r.err }
func (removed) InUse(context.Context) error                            { return nil }
func (removed) Remove(context.Context) error                           { return nil }
func (removed) Close() error                                           { return nil }
