//go:build !linux

package treecopy

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/go-archive"
)

func copyChanges(context.Context, *os.File, *os.File, []archive.Change, Options) (Report, error) {
	return Report{}, fmt.Errorf("copy changes: %w", errors.ErrUnsupported)
}

func merge(context.Context, *os.File, *os.File, Marks, Options) (Report, error) {
	return Report{}, fmt.Errorf("merge changes: %w", errors.ErrUnsupported)
}

func overlay(context.Context, *os.File, *os.File, []archive.Change, Options) (Report, error) {
	return Report{}, fmt.Errorf("write changes: %w", errors.ErrUnsupported)
}
