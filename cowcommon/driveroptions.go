package cowcommon

import "github.com/cowshed/cowshed/quota"

// DriverOptions are the options that every driver over a Backend has. The zero value is the default of each.
type DriverOptions struct {
	quota.Options
	RootStyle RootStyle // of a container's layer that names none; DefaultRoot: SnapshotRoot
}

// Setters set the options that every driver has: those of quota.Options and root_style. A driver adds its own.
func (o *DriverOptions) Setters() quota.Setters {
	setters := o.Options.Setters()
	setters["root_style"] = quota.Set(&o.RootStyle, ParseRootStyle)
	return setters
}
