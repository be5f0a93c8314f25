//go:build !linux

package treecmp

import (
	"errors"
	"fmt"
)

// Diff is implemented on Linux only. Elsewhere it answers errors.ErrUnsupported.
func Diff(a, b string, opts Options) ([]string, error) {
	return nil, fmt.Errorf("treecmp: %w", errors.ErrUnsupported)
}
