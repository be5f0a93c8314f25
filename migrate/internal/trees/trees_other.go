//go:build !linux

package trees

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/migrate"
)

var errUnsupported = fmt.Errorf("compare trees: %w", errors.ErrUnsupported)

func changes(context.Context, *os.File, *os.File) ([]archive.Change, error) {
	return nil, errUnsupported
}

func verify(context.Context, *os.File, *os.File, *os.File, migrate.Form) error {
	return errUnsupported
}

func size(context.Context, *os.File) (int64, error) { return 0, errUnsupported }
