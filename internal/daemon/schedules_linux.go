package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/schedule"
	"github.com/cowshed/cowshed/live"
)

// Places of schedules, as metrics and the log name them.
const (
	containersPlace = "containers"
	storePlace      = "store"
)

// containersHome is the home of containerd's snapshots. It is open as long as scrapes are. A post command may outlast the end of the
// daemon, which does not cancel it.
func containersHome(c Config, dir string, driver *cowdriver.Driver, scrapes *scrapes, log *slog.Logger) schedule.Home {
	records := live.Dir(dir, driver.String(), driver.Backend())
	layers := live.New(driver.Backend(), records, log).WithProcesses(ProcessOf(c)).WithContainers(ContainersOf(c))
	return schedule.Home{
		Place: containersPlace, Dir: records, Process: ProcessOf(c), Containers: ContainersOf(c),
		Use: func(ctx context.Context, do func(ctx context.Context, layers *live.Layers) error) error {
			err := errClosed
			scrapes.doLong(func(open context.Context, _ cowcommon.Backend) {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				defer context.AfterFunc(open, cancel)()
				err = do(ctx, layers)
			})
			return err
		},
	}
}

// storeHomes are the homes of the command's store in the daemon's root, if there is one. Each is opened when it is needed.
func storeHomes(c Config, log *slog.Logger) (homes []schedule.Home, err error) {
	root, err := filepath.EvalSymlinks(c.Root)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(live.DirsIn(root))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		driver, _, _ := strings.Cut(entry.Name(), "-")
		if !entry.IsDir() || !graphdriver.IsRegistered(driver) {
			continue
		}
		records := filepath.Join(live.DirsIn(root), entry.Name())
		homes = append(homes, schedule.Home{
			Place: storePlace, Dir: records,
			Use: func(ctx context.Context, do func(ctx context.Context, layers *live.Layers) error) error {
				return useStore(ctx, c, root, driver, records, log, do)
			},
		})
	}
	return homes, err
}

// placeOptions are the storage options of a driver that say where its volumes are.
func (c Config) placeOptions(driver string) (options []string) {
	for _, option := range c.StorageOptions {
		if of, _ := splitOption(option); of == driver && isPlace(option) {
			options = append(options, option)
		}
	}
	return options
}

// useStore opens the command's store beside the command. It takes over the options alone that say where the volumes are.
func useStore(ctx context.Context, c Config, root, driver, records string, log *slog.Logger, do func(context.Context, *live.Layers) error) (err error) {
	opened, err := openDriver(ctx, root, driver, c.placeOptions, user.IdentityMapping{}, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Cleanup()) }()
	if dir := live.Dir(root, driver, opened.Backend()); dir != records {
		return fault.New(errdefs.ErrFailedPrecondition, "%s has schedules of a store with other storage_options", records)
	}
	return do(ctx, live.New(opened.Backend(), records, log))
}

// openSchedules makes the Runner for the schedules of containers and of the command's store.
func (d *daemon) openSchedules(m *metrics) {
	d.schedules = schedule.New(func() ([]schedule.Home, error) {
		homes, err := storeHomes(d.config, d.log)
		return append(homes, d.containers), err
	}, d.log)
	m.registry.MustRegister(d.schedules)
}
