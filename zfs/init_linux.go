package zfs

import (
	"errors"
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/quota"
)

// Init opens the driver on the directory home, which it makes if need be. Its options are zfs.fsname, the
// dataset that holds the layers' datasets, which without it is the one that is mounted where home is, and
// zfs.size and zfs.quota_scope, as described at quota.Options. With zfs.read_only=true it opens what is there for reading
// alone, as OpenReadOnly does, in a read-only pool or another.
//
// graphdriver.ErrPrerequisites: home is not on ZFS, or a part of ZFS is missing. graphdriver.ErrIncompatibleFS:
// the dataset cannot hold layers as it is. errdefs.ErrInvalidArgument: an option is wrong. The result is a
// *cowdriver.Driver.
func Init(home string, options []string, idMap user.IdentityMapping) (graphdriver.Driver, error) {
	opts, err := quota.ParseOptions(Name, options)
	if err != nil {
		return nil, fmt.Errorf("zfs: %w", err)
	}
	_, gid := idMap.RootPair()
	backend, err := openDetected(home, opts.FSName, Options{GID: gid}, opts.ReadOnly)
	if err != nil {
		return nil, err
	}
	return cowdriver.New(Name, backend, cowdriver.Options{IDMap: idMap, Quota: opts}), nil
}

// openDetected opens the dataset that holds the layers' datasets, if the driver can work there, or can read there if
// that is all that is asked for.
func openDetected(home, fsname string, opts Options, readOnly bool) (cowcommon.Backend, error) {
	dataset, err := detectDataset(home, fsname)
	var cannotWrite *detect.ReadOnlyError
	switch {
	case readOnly && errors.As(err, &cannotWrite):
		return OpenReadOnly(home, dataset, opts, cannotWrite)
	case err != nil:
		return nil, fmt.Errorf("zfs: %w", err)
	case readOnly:
		return OpenReadOnly(home, dataset, opts, errOptionReadOnly)
	}
	return Open(home, dataset, opts)
}

// errOptionReadOnly is why a backend in a pool that can be written to does not do so.
var errOptionReadOnly = errors.New("it was opened with zfs.read_only=true")

// detectDataset finds the dataset that is to hold the layers' datasets, also where its error says that it is not usable.
func detectDataset(home, fsname string) (string, error) {
	if fsname != "" {
		return fsname, detect.ZFSDataset(fsname)
	}
	found, err := detect.Probe(home)
	if err != nil {
		return "", err
	}
	return found.Source, detect.ZFS(home)
}
