package btrfs

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
		Filesystem:   "btrfs",
		Open:         openDriver,
		ParseOptions: sharedOptions,
		Names:        Names,
		Usable:       func(_ context.Context, path string) error { return detect.Btrfs(path) },
		Devices:      examineDevices,
		Features:     features,
		CheckAdopt: func(_ context.Context, home string, _ []string, source, planned string) error {
			return checkAdoptInto(home, source, planned)
		},
	})
}

// Init opens the driver on the directory home, and makes home if it is missing. Options are btrfs.size,
// btrfs.quota_scope, btrfs.read_only and btrfs.root_style, as described at cowcommon.DriverOptions. btrfs.min_space is
// the least size that a layer may be given, and btrfs.quota is described at quota.Policy. With btrfs.read_only=true it
// opens an existing home as OpenReadOnly does. The result is a *cowdriver.Driver.
//
// Returns graphdriver.ErrPrerequisites if home is not on btrfs, and graphdriver.ErrIncompatibleFS if the driver cannot work
// on that btrfs. Returns graphdriver.ErrNotSupported off Linux, and errdefs.ErrInvalidArgument if an option is wrong.
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
	opts := cowdriver.Options{IDMap: idMap, Quota: o.Options, RootStyle: o.RootStyle, Logger: log}
	return cowdriver.Open(ctx, Name, home, detect.Btrfs(home), opts, func(why error) (cowcommon.Backend, error) {
		return openBackend(ctx, home, gid, o, log, why)
	})
}
