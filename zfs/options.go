package zfs

import (
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// driverOptions are the options of the driver.
type driverOptions struct {
	cowcommon.DriverOptions
	FSName string // dataset that holds the layers' datasets; "": the dataset mounted at home
}

// placeOption is the option that names the dataset, without the driver's prefix.
const placeOption = "fsname"

// parseOptions reads the options of the driver: the options of every driver, and fsname.
func parseOptions(opts []string) (o driverOptions, err error) {
	setters := o.Setters()
	setters[placeOption] = quota.Set(&o.FSName, parseDatasetName)
	if err = setters.Parse(Name, opts); err == nil {
		err = o.Check()
	}
	return o, err
}

func parseDatasetName(value string) (string, error) {
	if value == "" || strings.HasPrefix(value, "/") {
		return "", fault.New(errdefs.ErrInvalidArgument, "dataset %q: must be a name such as pool/cowshed", value)
	}
	return value, nil
}

// sharedOptions returns the options that every driver has.
func sharedOptions(opts []string) (cowcommon.DriverOptions, error) {
	o, err := parseOptions(opts)
	return o.DriverOptions, err
}
