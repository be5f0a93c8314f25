package graphdriver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

var (
	// goneDrivers were once part of Docker and are not any more.
	goneDrivers = []string{"aufs", "devicemapper", "overlay"}

	// dockerDrivers are all that Docker has had on systems other than Windows. Each has kept its layers
	// in the directory of its name.
	dockerDrivers = append([]string{"btrfs", "fuse-overlayfs", "overlay2", "vfs", "zfs"}, goneDrivers...)
)

// Prior returns the names of the registered drivers that have a directory in root which is not empty, sorted. Open chooses
// among these. A directory that cannot be read is an error, since a wrong guess would hide layers.
func Prior(root string) ([]string, error) {
	var prior []string
	for _, name := range Drivers() {
		empty, err := emptyOrAbsent(filepath.Join(root, name))
		if err != nil {
			return nil, fmt.Errorf("driver %s: %w", name, err)
		}
		if !empty {
			prior = append(prior, name)
		}
	}
	slices.Sort(prior)
	return prior, nil
}

func emptyOrAbsent(dir string) (bool, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = d.Close() }() // only read from

	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// unseenDrivers returns Docker's drivers that seem to have layers in root and that nobody registered. They do not
// prevent opening, so directories that cannot be read are ignored.
func unseenDrivers(root string) []string {
	var unseen []string
	for _, name := range dockerDrivers {
		if IsRegistered(name) {
			continue
		}
		if empty, err := emptyOrAbsent(filepath.Join(root, name)); err != nil || !empty {
			unseen = append(unseen, name)
		}
	}
	slices.Sort(unseen)
	return unseen
}
