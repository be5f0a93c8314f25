//go:build !linux

package btrfs

import (
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/graphdriver"
)

// Init says graphdriver.ErrNotSupported: btrfs exists on Linux only.
func Init(string, []string, user.IdentityMapping) (graphdriver.Driver, error) {
	return nil, fmt.Errorf("%w: btrfs exists on Linux only", graphdriver.ErrNotSupported)
}
