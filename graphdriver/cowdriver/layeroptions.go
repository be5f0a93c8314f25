package cowdriver

import (
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// rootStyleKey is the option that names the root style of a layer.
const rootStyleKey = "root_style"

// namesRootStyle reports whether the options of one layer name its root style.
func namesRootStyle(storageOpt map[string]string) bool {
	for key := range storageOpt {
		if strings.EqualFold(key, rootStyleKey) {
			return true
		}
	}
	return false
}

// volumeOptions reads the options of one layer, size and root_style, in any case. Without them a layer of a container has
// the driver's defaults. Any other layer has no limit and SnapshotRoot.
//
// Returns ErrInvalidArgument if there is another key, or if a value cannot be.
func (o Options) volumeOptions(storageOpt map[string]string, ofContainer bool) (cowcommon.VolumeOptions, error) {
	v := cowcommon.VolumeOptions{RootStyle: cowcommon.SnapshotRoot}
	if ofContainer {
		v.Limit, v.RootStyle = o.Quota.DefaultLimit(), o.rootStyle()
	}
	setters := quota.Setters{
		"size":       quota.Set(&v.Limit, o.Quota.ParseLimit),
		rootStyleKey: quota.Set(&v.RootStyle, cowcommon.ParseRootStyle),
	}
	// Sorted, so that of several errors it is always the same that is reported.
	for _, key := range slices.Sorted(maps.Keys(storageOpt)) {
		set := setters[strings.ToLower(key)]
		if set == nil {
			return cowcommon.VolumeOptions{}, fault.New(errdefs.ErrInvalidArgument, "unknown layer option %q: there are %s",
				key, strings.Join(slices.Sorted(maps.Keys(setters)), " and "))
		}
		if err := set(storageOpt[key]); err != nil {
			return cowcommon.VolumeOptions{}, err
		}
	}
	return v, nil
}

// rootStyle is the style of a container's layer that names none.
func (o Options) rootStyle() cowcommon.RootStyle {
	if o.RootStyle == cowcommon.DefaultRoot {
		return cowcommon.SnapshotRoot
	}
	return o.RootStyle
}
