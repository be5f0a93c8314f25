package btrfs

import (
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// driverOptions are the options of the driver.
type driverOptions struct {
	cowcommon.DriverOptions
	Policy quota.Policy
}

// parseOptions reads the options of the driver: those of every driver, and min_space and quota.
func parseOptions(opts []string) (o driverOptions, err error) {
	setters := o.Setters()
	setters["quota"] = quota.Set(&o.Policy, quota.ParsePolicy)
	setters["min_space"] = quota.Set(&o.MinSpace, func(value string) (quota.Minimum, error) {
		bytes, err := quota.ParseSize(value)
		return quota.Minimum{Bytes: bytes, Option: Name + ".min_space"}, err
	})
	err = setters.Parse(Name, opts)
	switch {
	case err != nil:
	case o.Policy == quota.PolicySimple && o.Scope == quota.ScopeTotal:
		err = fault.New(errdefs.ErrInvalidArgument, "btrfs.quota=simple and btrfs.quota_scope=total exclude each other: simple quotas do not count the image, use classic")
	case o.Policy == quota.PolicyOff && o.Size != 0:
		err = fault.New(errdefs.ErrInvalidArgument, "btrfs.quota=off and btrfs.size exclude each other")
	default:
		err = o.Check()
	}
	return o, err
}

// sharedOptions returns the options that every driver has.
func sharedOptions(opts []string) (cowcommon.DriverOptions, error) {
	o, err := parseOptions(opts)
	return o.DriverOptions, err
}
