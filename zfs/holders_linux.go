package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/internal/staging"
)

// errMounted says that a dataset is mounted.
var errMounted error = &fault.Error{Kind: fault.ErrInUse}

// checkNotMounted checks that a volume's dataset is not mounted. Returns errMounted if the dataset is mounted in any
// mount namespace, or is a layer of an overlay. Also returns it if a file in the dataset is still open after an
// unmount.
func (b *Backend) checkNotMounted(ctx context.Context, name string) error {
	mounted, err := b.isMounted(ctx, b.datasetOf(name))
	if err == nil && mounted {
		err = fault.New(errMounted, "dataset %s is mounted", b.datasetOf(name))
	}
	return err
}

// checkIdle is checkNotMounted for a claimed volume that is to be renamed, which the kernel would do with a mounted
// dataset too. The error names the users.
func (b *Backend) checkIdle(ctx context.Context, name string) error {
	err := b.checkNotMounted(ctx, name)
	if errors.Is(err, errMounted) {
		err = b.busy(err, b.datasetOf(name))
	}
	return err
}

// nameHolders adds the users of a volume's dataset to an errMounted. Clones do not need their names, and are spared the
// search. The search may mount the dataset, so nameHolders relies on the volume meanwhile.
func (b *Backend) nameHolders(ctx context.Context, err error, name string) error {
	if !errors.Is(err, errMounted) {
		return err
	}
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	done, relyErr := b.rely(ctx, name)
	if relyErr != nil {
		return errors.Join(err, relyErr)
	}
	return errors.Join(b.busy(err, b.datasetOf(name)), done())
}

// checkSnapshotsNotMounted checks that no mount namespace has a snapshot of a volume mounted. The kernel keeps no
// statistics of snapshots.
func (b *Backend) checkSnapshotsNotMounted(name string) error {
	uses, err := mountsOf(b.datasetOf(name) + "@")
	if err != nil {
		return err
	}
	return mounttable.InUse("a snapshot of volume "+name, uses)
}

// busy turns the error of a busy dataset or snapshot into an errdefs.ErrFailedPrecondition that names the users.
func (b *Backend) busy(err error, dataset string) error {
	holders, scanErr := b.holders(dataset)
	switch {
	case scanErr != nil:
		return fault.New(fault.ErrInUse, "%s is busy, and its users cannot be found: %w", dataset, errors.Join(scanErr, err))
	case len(holders) == 0:
		holders = []string{"busy, by an overlay or a mount namespace without processes"}
	}
	users := fmt.Errorf("%s: %s", dataset, strings.Join(holders, ", "))
	if errors.Is(err, errMounted) { // err adds nothing to the users
		return fault.As(errMounted, users)
	}
	return fault.As(fault.ErrInUse, fmt.Errorf("%w: %w", users, err))
}

// maxHolders is the most users that an error names.
const maxHolders = 10

// holders lists the mounts of a dataset or snapshot in all mount namespaces, and the processes that have a file in it
// open. The mounts of a dataset include those of its snapshots.
func (b *Backend) holders(dataset string) (holders []string, err error) {
	// A dataset that was unmounted while in use is in no mount namespace. Mounted once more, it is the same filesystem,
	// and its device number is that of the files that processes still have open.
	dir := filepath.Join(b.views, staging.Name("holders-"))
	device, err := b.deviceOf(dataset, dir)
	if err != nil {
		return nil, err
	}
	uses, err := mountsOf(dataset)
	if err != nil {
		return nil, err
	}
	for _, use := range uses {
		holders = append(holders, use.String())
	}
	if device != 0 {
		for _, pid := range mounttable.Holders(mounttable.File{Device: device}) {
			if pid != os.Getpid() {
				holders = append(holders, "open in "+mounttable.DescribeProcess(pid))
			}
		}
	}
	if len(holders) > maxHolders {
		holders = append(holders[:maxHolders:maxHolders], fmt.Sprintf("and %d others", len(holders)-maxHolders))
	}
	return holders, nil
}

// mountsOf lists the mounts of a dataset and of its snapshots. With "@" at the end it lists those of the snapshots
// alone.
func mountsOf(dataset string) ([]mounttable.Use, error) {
	return mounttable.UsesOfSource("zfs", func(source string) bool {
		return source == dataset || strings.HasPrefix(source, strings.TrimSuffix(dataset, "@")+"@")
	})
}

// deviceOf mounts a dataset once more, on dir, and returns its device number, or 0 if it cannot be mounted.
func (b *Backend) deviceOf(dataset, dir string) (device uint64, err error) {
	ctx, cancel := b.ending()
	defer cancel()
	if err := b.mountAt(ctx, dataset, dir, 0, ""); err != nil {
		if err = b.mountAt(ctx, dataset, dir, unix.MS_RDONLY, ""); err != nil {
			return 0, b.after(err, func() error { return b.unmountAt(ctx, dir, true) })
		}
	}
	device, err = read(ctx, b.zfs, "stat", func(kernel) (uint64, error) {
		var stat unix.Stat_t
		err := unix.Stat(dir, &stat)
		return stat.Dev, err
	})
	return device, errors.Join(err, b.unmountAt(ctx, dir, true))
}
