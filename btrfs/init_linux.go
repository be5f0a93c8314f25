package btrfs

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

// Init opens the driver on the directory home, which it makes if need be. Its options are btrfs.size,
// btrfs.min_space, btrfs.quota and btrfs.quota_scope, as described at quota.Options. With btrfs.read_only=true it opens
// what is there for reading alone, as OpenReadOnly does, on a read-only filesystem or another.
//
// graphdriver.ErrPrerequisites: home is not on btrfs. graphdriver.ErrIncompatibleFS: it is, but the driver
// cannot work there. errdefs.ErrInvalidArgument: an option is wrong. The result is a *cowdriver.Driver.
func Init(home string, options []string, idMap user.IdentityMapping) (graphdriver.Driver, error) {
	opts, err := quota.ParseOptions(Name, options)
	if err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	_, gid := idMap.RootPair()
	backend, err := openDetected(home, Options{GID: gid, Quota: opts.Policy, Scope: opts.Scope}, opts.ReadOnly)
	if err != nil {
		return nil, err
	}
	return cowdriver.New(Name, backend, cowdriver.Options{IDMap: idMap, Quota: opts}), nil
}

// openDetected opens home if the driver can work there, or can read there if that is all that is asked for.
func openDetected(home string, opts Options, readOnly bool) (cowcommon.Backend, error) {
	err := detect.Btrfs(home)
	var cannotWrite *detect.ReadOnlyError
	switch {
	case readOnly && errors.As(err, &cannotWrite):
		return OpenReadOnly(home, opts, cannotWrite)
	case err != nil:
		return nil, fmt.Errorf("btrfs: %w", err)
	case readOnly:
		return OpenReadOnly(home, opts, errOptionReadOnly)
	}
	return Open(home, opts)
}

// errOptionReadOnly is why a backend on a filesystem that can be written to does not do so.
var errOptionReadOnly = errors.New("it was opened with btrfs.read_only=true")
