package btrfs

import (
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/quota"
)

// Init opens the driver on the directory home, which it makes if need be. Its options are btrfs.size,
// btrfs.min_space, btrfs.quota and btrfs.quota_scope, as described at quota.Options.
//
// graphdriver.ErrPrerequisites: home is not on btrfs. graphdriver.ErrIncompatibleFS: it is, but the driver
// cannot work there. errdefs.ErrInvalidArgument: an option is wrong. The result is a *cowcommon.Driver.
func Init(home string, options []string, idMap user.IdentityMapping) (graphdriver.Driver, error) {
	opts, err := quota.ParseOptions(Name, options)
	if err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	if err := detect.Btrfs(home); err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	_, gid := idMap.RootPair()
	backend, err := Open(home, Options{GID: gid, Quota: opts.Policy, Scope: opts.Scope})
	if err != nil {
		return nil, err
	}
	return cowcommon.NewDriver(Name, backend, cowcommon.Options{IDMap: idMap, Quota: opts}), nil
}
