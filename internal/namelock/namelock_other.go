//go:build !linux

package namelock

import "context"

// All locks nothing where no driver works.
func All(context.Context, string, ...Want) (unlock func() error, err error) {
	return func() error { return nil }, nil
}
