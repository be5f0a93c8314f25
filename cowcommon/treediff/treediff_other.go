//go:build !linux

package treediff

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/go-archive"
)

func compare(context.Context, string, string, *Hints, Extra) ([]archive.Change, error) {
	return nil, fmt.Errorf("treediff: compare: %w", errors.ErrUnsupported)
}

func size(context.Context, string, []archive.Change) (int64, error) {
	return 0, fmt.Errorf("treediff: size: %w", errors.ErrUnsupported)
}
