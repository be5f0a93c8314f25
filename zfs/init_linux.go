package zfs

import (
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/quota"
)

// Init opens the driver on the directory home, which it makes if need be. Its options are zfs.fsname, the
// dataset that holds the layers' datasets, which without it is the one that is mounted where home is, and
// zfs.size and zfs.quota_scope, as described at quota.Options.
//
// graphdriver.ErrPrerequisites: home is not on ZFS, or a part of ZFS is missing. graphdriver.ErrIncompatibleFS:
// the dataset cannot hold layers as it is. errdefs.ErrInvalidArgument: an option is wrong. The result is a
// *cowcommon.Driver.
func Init(home string, options []string, idMap user.IdentityMapping) (graphdriver.Driver, error) {
	opts, err := quota.ParseOptions(Name, options)
	if err != nil {
		return nil, fmt.Errorf("zfs: %w", err)
	}
	dataset, err := detectDataset(home, opts.FSName)
	if err != nil {
		return nil, fmt.Errorf("zfs: %w", err)
	}
	_, gid := idMap.RootPair()
	backend, err := Open(home, dataset, Options{GID: gid})
	if err != nil {
		return nil, err
	}
	return cowcommon.NewDriver(Name, backend, cowcommon.Options{IDMap: idMap, Quota: opts}), nil
}

// detectDataset finds the dataset that is to hold the layers' datasets, and finds it usable.
func detectDataset(home, fsname string) (string, error) {
	if fsname != "" {
		return fsname, detect.ZFSDataset(fsname)
	}
	if err := detect.ZFS(home); err != nil {
		return "", err
	}
	found, err := detect.Probe(home)
	return found.Source, err
}
