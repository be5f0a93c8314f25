package zfs

import (
	"context"
	"log/slog"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

func init() {
	cowdriver.Register(cowdriver.Registration{
		Name:         Name,
		Filesystem:   "ZFS",
		Open:         openDriver,
		ParseOptions: sharedOptions,
		Names:        Names,
		Usable:       detect.ZFS,
		CheckShared:  checkShared,
		CheckAdopt: func(ctx context.Context, home string, options []string, source, planned string) error {
			o, err := parseOptions(options)
			if err != nil {
				return err
			}
			return checkAdoptInto(ctx, home, o.FSName, source, planned)
		},
		Free: func(ctx context.Context, home string, options []string) (uint64, error) {
			o, err := parseOptions(options)
			if err != nil {
				return 0, err
			}
			return freeInto(ctx, home, o.FSName)
		},
		Place: placeOption,
		Files: []string{counterName},
	})
}

// Init opens the driver on the directory home, and makes home if it is missing. zfs.fsname names the dataset that holds
// the layers' datasets. Without it, the dataset that is mounted at home holds them. Other options are zfs.size,
// zfs.quota_scope, zfs.read_only and zfs.root_style, as described at cowcommon.DriverOptions. With zfs.read_only=true it
// opens an existing home as OpenReadOnly does. The result is a *cowdriver.Driver.
//
// Returns graphdriver.ErrPrerequisites if home is not on ZFS or a part of ZFS is missing, and
// graphdriver.ErrIncompatibleFS if the dataset cannot hold layers. Returns graphdriver.ErrNotSupported off Linux, and
// errdefs.ErrInvalidArgument if an option is wrong.
func Init(home string, options []string, idMap user.IdentityMapping) (graphdriver.Driver, error) {
	return openDriver(context.Background(), home, options, idMap, nil)
}

// openDriver is Init as graphdriver.Open calls it. A nil logger stands for slog.Default.
func openDriver(ctx context.Context, home string, options []string, idMap user.IdentityMapping, log *slog.Logger) (graphdriver.Driver, error) {
	o, err := parseOptions(options)
	if err != nil {
		return nil, err
	}
	_, gid := idMap.RootPair()
	dataset, usable := detectDataset(ctx, home, o.FSName)
	opts := cowdriver.Options{IDMap: idMap, Quota: o.Options, RootStyle: o.RootStyle, Logger: log}
	return cowdriver.Open(ctx, Name, home, usable, opts, func(why error) (cowcommon.Backend, error) {
		return openBackend(ctx, home, dataset, gid, log, why)
	})
}
