//go:build !linux

package zfs

import (
	"context"
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/graphdriver"
)

// Init says graphdriver.ErrNotSupported: the driver knows ZFS on Linux only.
func Init(string, []string, user.IdentityMapping) (graphdriver.Driver, error) {
	return nil, fmt.Errorf("%w: the ZFS driver works on Linux only", graphdriver.ErrNotSupported)
}

// Names says graphdriver.ErrNotSupported.
func Names(context.Context, string, []string) ([]string, error) {
	return nil, fmt.Errorf("%w: the ZFS driver works on Linux only", graphdriver.ErrNotSupported)
}
