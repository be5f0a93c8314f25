package dockerroot

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
)

// Options are those of Open.
type Options struct {
	Dir     string       // the root, such as /var/lib/docker
	Driver  string       // a driver that Detect names; "" if the root has one
	Dataset string       // that of Docker's option zfs.fsname; "" for the dataset that the root is in
	Logger  *slog.Logger // nil: slog.Default
}

// Source is a root with one of its drivers. It implements migrate.Source.
type Source struct {
	root   *rootdir.Dir
	driver string
	image  string // the directory image/DRIVER
	keeper keeper
	log    *slog.Logger
	locks  rootuse.Locks // of the databases

	mu     sync.Mutex
	chains map[string]string // names of directories in the layerdb by ID of the layer; nil: not read
}

var _ migrate.Source = (*Source)(nil)

// Open opens a root for one driver. Returns ErrNotFound if it has no state of the driver, and ErrNotImplemented if the
// driver is not known. Returns ErrInvalidArgument if no driver is given and the root has several. Returns
// ErrFailedPrecondition to the superuser if the ids of files were mapped.
func Open(_ context.Context, o Options) (_ *Source, err error) {
	defer func() { err = fault.Wrap("open Docker's root", o.Dir, err) }()
	root, err := rootdir.Open(o.Dir)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	s := &Source{root: root, log: cmp.Or(o.Logger, slog.Default())}
	if err := s.open(o); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return s, nil
}

func (s *Source) open(o Options) (err error) {
	if s.driver, err = choose(s.root, o.Driver); err != nil {
		return err
	}
	if err := checkOwner(s.root); err != nil {
		return err
	}
	s.image = path.Join("image", s.driver)
	s.keeper, err = newKeeper(s, o)
	return err
}

// checkOwner refuses a root of containers in user namespaces for the superuser. Docker gives them this directory, too.
func checkOwner(root *rootdir.Dir) error {
	uid, gid, err := root.Owner("containers")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return rootdir.NotFound(err)
	}
	if os.Geteuid() == 0 && (uid != 0 || gid != 0) {
		return fault.New(errdefs.ErrFailedPrecondition, "user %d and group %d own its containers: for these, Docker has mapped the ids of "+
			"files (userns-remap, or rootless); move its images by docker save", uid, gid)
	}
	return nil
}

// newKeeper returns the part of the driver.
func newKeeper(s *Source, o Options) (keeper, error) {
	switch s.driver {
	case "btrfs":
		return wholeTrees{root: s.root, dir: "btrfs/subvolumes", volumes: true}, nil
	case "vfs":
		return wholeTrees{root: s.root, dir: "vfs/dir"}, nil
	case "overlay2":
		return overlays{root: s.root, dir: s.driver, form: migrate.Overlay, log: s.log}, nil
	case "fuse-overlayfs": // Docker unpacks images with the marks of aufs, and the mount makes others
		return overlays{root: s.root, dir: s.driver, form: migrate.FuseOverlay, log: s.log}, nil
	case "aufs":
		return branches{root: s.root, log: s.log}, nil
	case "zfs":
		return newDatasets(s.root, o.Dataset)
	}
	return nil, fault.New(errdefs.ErrNotImplemented, "graph driver %s is not known", shown(s.driver))
}

// choose checks the name of a driver, or finds that of the only one.
func choose(root *rootdir.Dir, driver string) (string, error) {
	drivers, err := detect(root)
	if err != nil {
		return "", err
	}
	switch {
	case driver == "" && len(drivers) == 1:
		return drivers[0], nil
	case driver == "" && len(drivers) > 1:
		return "", fault.New(errdefs.ErrInvalidArgument, "the root has state of several drivers: choose one of %s", strings.Join(drivers, ", "))
	case driver == "":
		return "", fault.New(errdefs.ErrNotFound, "the root has no state of a graph driver")
	case !isDriver(driver):
		return "", fault.New(errdefs.ErrInvalidArgument, "%s is no name of a graph driver", shown(driver))
	}
	// Its state may be empty, after a removal that was interrupted.
	file, err := root.OpenDir(path.Join("image", driver, "layerdb"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(errdefs.ErrNotFound, "the root has no state of graph driver %s", driver)
	}
	if err != nil {
		return "", rootdir.NotFound(err)
	}
	return driver, file.Close()
}

// Detect names the drivers that a root has layers or images of, sorted.
func Detect(dir string) (drivers []string, err error) {
	defer func() { err = fault.Wrap("look for graph drivers in", dir, err) }()
	root, err := rootdir.Open(dir)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return detect(root)
}

func detect(root *rootdir.Dir) (drivers []string, err error) {
	names, err := root.List("image", maxDrivers)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	for _, name := range names {
		if !isDriver(name) {
			continue
		}
		has, err := hasState(root, path.Join("image", name))
		if err != nil {
			return nil, err
		}
		if has {
			drivers = append(drivers, name)
		}
	}
	return drivers, nil
}

// hasState reports whether there is a layer or an image. Docker makes the directories of every driver that it starts with.
func hasState(root *rootdir.Dir, image string) (bool, error) {
	for _, dir := range []string{"layerdb/sha256", "layerdb/mounts", "imagedb/content/sha256"} {
		names, err := root.List(path.Join(image, dir), maxEntries)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errdefs.ErrInvalidArgument) {
			return false, rootdir.NotFound(err)
		}
		if len(names) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// isDriver reports whether name is fit for a graph driver. A plugin's name may have a tag.
func isDriver(name string) bool {
	return name != "" && len(name) <= 128 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_:") == ""
}

// Close implements migrate.Source.
func (s *Source) Close() error { return errors.Join(s.locks.Release(), s.root.Close()) }
