//go:build !linux

package daemon

import (
	"context"
	"fmt"

	"github.com/cowshed/cowshed/graphdriver"
)

// Run returns graphdriver.ErrNotSupported.
func Run(context.Context, Config, Options) error {
	return fmt.Errorf("the daemon runs on Linux only: %w", graphdriver.ErrNotSupported)
}
