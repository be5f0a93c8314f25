package zfs

import (
	"context"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/detect"
)

// counterName is the name of the change counter in the home. No other file there has content at all times.
const counterName = "changes"

// detectDataset finds the dataset that is to hold the layers' datasets. If that dataset is not usable, it returns the
// name with the error.
func detectDataset(ctx context.Context, home, fsname string) (string, error) {
	if fsname != "" {
		return fsname, detect.ZFSDataset(ctx, fsname)
	}
	found, err := detect.Probe(home)
	if err != nil {
		return "", err
	}
	return found.Source, detect.ZFS(ctx, home)
}

// checkShared reports whether dir, if it is on ZFS, is the mount point of a dataset of its own. The volumes are the
// datasets directly below that dataset, and a Backend takes all of those for its own. An option that names the dataset
// is trusted.
func checkShared(dir string, options []string) error {
	if o, err := parseOptions(options); err == nil && o.FSName != "" {
		return nil
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	f, err := detect.Probe(dir)
	if err != nil || f.Type != Name || f.Mountpoint == dir {
		return err
	}
	return fault.New(errdefs.ErrFailedPrecondition, "%s needs a dataset of its own, and is on %s: make one with: zfs create -o mountpoint=%s %s-%s", dir, f.Source, dir, f.Source, filepath.Base(dir))
}
