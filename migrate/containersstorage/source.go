package containersstorage

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/dataset"
	"github.com/cowshed/cowshed/migrate/internal/parts"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
	"github.com/cowshed/cowshed/migrate/internal/subvolume"
)

// Program is the Program of an Inventory of this package.
const Program = "containers-storage"

var drivers = []string{"btrfs", "overlay", "vfs", "zfs"}

// Options are those of Open.
type Options struct {
	Dir     string // the root, such as /var/lib/containers/storage
	Driver  string // a driver that Detect names; "" if the root has one
	Dataset string // that of the option zfs.fsname of containers/storage; "" for the dataset that the root is in
}

// Source is a root of containers/storage, with one of its drivers. It implements migrate.Source.
type Source struct {
	root   *rootdir.Dir
	driver string
	fuse   bool          // the layers of overlay were made by fuse-overlayfs
	holder string        // the dataset that has those of the layers
	locks  rootuse.Locks // of the records
}

var _ migrate.Source = (*Source)(nil)

// Open opens a root for one driver. Returns errdefs.ErrNotFound if it has no layers of the driver, and
// errdefs.ErrInvalidArgument if no driver is given and the root has several. Returns errdefs.ErrFailedPrecondition to the
// superuser if the root belongs to another user, for whom the ids of files were mapped.
func Open(_ context.Context, o Options) (*Source, error) {
	root, err := rootdir.Open(o.Dir)
	if err != nil {
		return nil, fault.Wrap("open the root", o.Dir, rootdir.NotFound(err))
	}
	s := &Source{root: root, holder: o.Dataset}
	if err := s.open(o.Driver); err != nil {
		return nil, errors.Join(fault.Wrap("open the root", root.Path(), err), root.Close())
	}
	return s, nil
}

func (s *Source) open(driver string) (err error) {
	if s.driver, err = choose(s.root, driver); err != nil {
		return err
	}
	if err := checkOwner(s.root); err != nil {
		return err
	}
	switch s.driver {
	case "overlay":
		flag, err := s.root.ReadFile("overlay/.has-mount-program", maxSmallFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.fuse = strings.TrimSpace(string(flag)) == "true"
	case "zfs":
		s.holder, err = dataset.Holder(s.root, s.holder)
	}
	return err
}

// choose checks the name of a driver, or finds that of the only one.
func choose(root *rootdir.Dir, driver string) (string, error) {
	found, err := detect(root)
	if err != nil {
		return "", err
	}
	switch {
	case driver != "" && !slices.Contains(drivers, driver):
		return "", fault.New(errdefs.ErrInvalidArgument, "driver %q is not known; choose one of %s", driver, strings.Join(drivers, ", "))
	case driver != "" && !slices.Contains(found, driver):
		return "", fault.New(errdefs.ErrNotFound, "the root has no layers of driver %s", driver)
	case driver != "":
		return driver, nil
	case len(found) == 0:
		return "", fault.New(errdefs.ErrNotFound, "the root has no layers of containers/storage")
	case len(found) > 1:
		return "", fault.New(errdefs.ErrInvalidArgument, "the root has layers of several drivers: choose one of %s", strings.Join(found, ", "))
	}
	return found[0], nil
}

// Detect names the drivers that a root has layers of, sorted.
func Detect(dir string) (found []string, err error) {
	defer func() { err = fault.Wrap("look for layers of containers/storage in", dir, err) }()
	root, err := rootdir.Open(dir)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return detect(root)
}

func detect(root *rootdir.Dir) (found []string, err error) {
	for _, name := range drivers {
		dir, err := root.OpenDir(name + "-layers")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := dir.Close(); err != nil {
			return nil, err
		}
		found = append(found, name)
	}
	return found, nil
}

// Close implements migrate.Source.
func (s *Source) Close() error { return errors.Join(s.locks.Release(), s.root.Close()) }

// dir is the directory of a layer's files, below the root.
func (s *Source) dir(layer string) string {
	switch s.driver {
	case "btrfs":
		return "btrfs/subvolumes/" + layer
	case "vfs":
		return "vfs/dir/" + layer
	}
	return "overlay/" + layer + "/diff"
}

// dataset is that of a layer on ZFS.
func (s *Source) dataset(layer string) string { return s.holder + "/" + layer }

func (s *Source) form() migrate.Form {
	switch {
	case s.driver != "overlay":
		return migrate.Whole
	case s.fuse:
		return migrate.FuseOverlay
	}
	return migrate.Overlay
}

// Open implements migrate.Source. Returns errdefs.ErrNotFound if the root has no files of the layer.
func (s *Source) Open(ctx context.Context, layer string) (*migrate.Content, error) {
	content, err := s.content(ctx, layer)
	return content, fault.Wrap("open layer", layer, rootdir.NotFound(err))
}

// datasetID is the form of the IDs that containers/storage gives to layers. On ZFS they are names of datasets beside those of
// others, so no other ID is accepted there.
var datasetID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// checkID returns errdefs.ErrInvalidArgument if a layer cannot have that ID.
func (s *Source) checkID(layer string) error {
	if s.driver == "zfs" && !datasetID.MatchString(layer) {
		return fault.New(errdefs.ErrInvalidArgument, "layer %.80q: the ID of a layer on ZFS has 64 hexadecimal digits", layer)
	}
	return cowcommon.CheckID(layer)
}

func (s *Source) content(ctx context.Context, layer string) (*migrate.Content, error) {
	if err := s.checkID(layer); err != nil {
		return nil, err
	}
	if s.driver == "zfs" {
		dir, err := dataset.Open(ctx, s.dataset(layer))
		if err != nil {
			return nil, err
		}
		return &migrate.Content{Dir: dir, Form: migrate.Whole, Volume: s.dataset(layer)}, nil
	}
	dir, err := s.root.OpenDir(s.dir(layer))
	if err != nil {
		return nil, err
	}
	content := &migrate.Content{Dir: dir, Form: s.form()}
	if s.driver == "btrfs" && subvolume.Is(dir) {
		content.Volume = s.root.Join(s.dir(layer))
	}
	return content, nil
}

// Parts implements migrate.Source.
func (s *Source) Parts(_ context.Context, layer string) (io.ReadCloser, error) {
	opened, err := s.parts(layer)
	if err != nil {
		return nil, fault.Wrap("open the tar's parts of layer", layer, err)
	}
	return opened, nil
}

func (s *Source) parts(layer string) (io.ReadCloser, error) {
	if err := s.checkID(layer); err != nil {
		return nil, err
	}
	return parts.Open(s.root, s.driver+"-layers/"+layer+".tar-split.gz")
}
