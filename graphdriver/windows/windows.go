// Package windows has the functions of Docker's drivers for Windows, for programs that were written for them.
//
// Their optional methods are interfaces that any driver may implement: [graphdriver.DiffPathDriver] and
// [graphdriver.CustomImageDriver]. Cowshed's drivers do.
package windows

import (
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/graphdriver"
)

// CustomImageInfo describes a base image that is always there.
type CustomImageInfo = graphdriver.CustomImageInfo

// InitDiff opened the driver "windowsdiff", which kept layers as differencing disks. It returns
// graphdriver.ErrNotSupported on every system.
func InitDiff(home string, _ []string, _, _ []user.IDMap) (graphdriver.Driver, error) {
	return nil, notSupported("windowsdiff", "differencing disks of Windows", home)
}

// InitFilter opened the driver "windowsfilter", which kept layers by a storage filter. It returns
// graphdriver.ErrNotSupported on every system.
func InitFilter(home string, _ []string, _, _ []user.IDMap) (graphdriver.Driver, error) {
	return nil, notSupported("windowsfilter", "the storage filter of Windows", home)
}

func notSupported(name, needs, home string) error {
	return fmt.Errorf("%w: %s in %s needs %s, and Cowshed keeps layers on btrfs and ZFS only", graphdriver.ErrNotSupported, name, home, needs)
}
