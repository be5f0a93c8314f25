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

// checkNotMounted reports whether nobody has a volume's dataset mounted, whichever mount namespace that is in, has it
// as a layer of an overlay, or has something open in it since. errMounted: somebody has.
func (b *Backend) checkNotMounted(name string) error {
	mounted, err := b.isMounted(b.datasetOf(name))
	if err == nil && mounted {
		err = fault.New(errMounted, "dataset %s is mounted", b.datasetOf(name))
	}
	return err
}

// nameHolders adds to an errMounted who has the volume's dataset mounted. Clones, which do not need to know, are spared
// the search. It may mount the dataset, so whoever wants to claim the volume waits for its end.
func (b *Backend) nameHolders(ctx context.Context, err error, name string) error {
	if !errors.Is(err, errMounted) {
		return err
	}
	done, relyErr := b.rely(context.WithoutCancel(ctx), name)
	if relyErr != nil {
		return errors.Join(err, relyErr)
	}
	return errors.Join(b.busy(err, b.datasetOf(name)), done())
}

// checkSnapshotsNotMounted is the same for the snapshots of a volume, which the kernel keeps no statistics of.
func (b *Backend) checkSnapshotsNotMounted(name string) error {
	uses, err := mountsOf(b.datasetOf(name) + "@")
	if err != nil {
		return err
	}
	return mounttable.InUse("a snapshot of volume "+name, uses)
}

// busy turns the fact that a dataset or snapshot is busy into an errdefs.ErrFailedPrecondition that says who
// keeps it so.
func (b *Backend) busy(err error, dataset string) error {
	holders, scanErr := b.holders(dataset)
	switch {
	case scanErr != nil:
		return fault.New(fault.ErrInUse, "%s is busy, and who uses it cannot be found: %w", dataset, errors.Join(scanErr, err))
	case len(holders) == 0:
		holders = []string{"busy, by an overlay or a mount namespace without processes"}
	}
	users := fmt.Errorf("%s: %s", dataset, strings.Join(holders, ", "))
	if errors.Is(err, errMounted) { // which says no more
		return fault.As(errMounted, users)
	}
	return fault.As(fault.ErrInUse, fmt.Errorf("%w: %w", users, err))
}

// maxHolders is how many holders an error names.
const maxHolders = 10

// holders finds the mounts of a dataset, or of a snapshot of it, in all mount namespaces, and the processes that have
// something open in it.
func (b *Backend) holders(dataset string) (holders []string, err error) {
	// A dataset that was unmounted while in use is in no mount namespace. Mounted again, it is the same
	// filesystem, by whose device number those can be told who still use it.
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

// mountsOf lists the mounts of a dataset and of its snapshots, or with "@" at the end of its snapshots alone.
func mountsOf(dataset string) ([]mounttable.Use, error) {
	return mounttable.UsesOfSource("zfs", func(source string) bool {
		return source == dataset || strings.HasPrefix(source, strings.TrimSuffix(dataset, "@")+"@")
	})
}

// deviceOf is the device number of a mounted dataset, 0 if it cannot be mounted once more to be asked.
func (b *Backend) deviceOf(dataset, dir string) (device uint64, err error) {
	if err := b.mountAt(dataset, dir, 0, ""); err != nil {
		if err = b.mountAt(dataset, dir, unix.MS_RDONLY, ""); err != nil {
			return 0, unmountPoint(dir, true)
		}
	}
	var stat unix.Stat_t
	if err = unix.Stat(dir, &stat); err == nil {
		device = stat.Dev
	}
	return device, errors.Join(err, unmountPoint(dir, true))
}
