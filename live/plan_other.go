//go:build !linux

package live

import (
	"context"
	"errors"
	"os"

	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon"
)

type plan struct {
	changes   []archive.Change
	conflicts []Conflict
}

func (p *plan) isEmpty() bool { return true }

func (p *plan) apply(context.Context, *os.File, string, string) error { return errors.ErrUnsupported }

func (m *merge) plan(context.Context, *cowcommon.Comparison, *cowcommon.Comparison) (*plan, error) {
	return nil, errors.ErrUnsupported
}
