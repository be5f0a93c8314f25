package aufs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/migrate/oldgraph"
)

// ErrAufsNotSupported says that the kernel has no aufs. graphdriver.IsDriverNotSupported is true for it.
var ErrAufsNotSupported error = graphdriver.NotSupportedError("AUFS was not found in /proc/filesystems")

// Init opens the driver with its layers in root. It knows no options. Returns ErrAufsNotSupported if the kernel has no
// aufs at the moment: load its module first.
func Init(root string, options []string) (graphdriver.Driver, error) {
	if err := supported("/proc/filesystems"); err != nil {
		return nil, err
	}
	if len(options) > 0 {
		return nil, fault.Said(graphdriver.ErrNotSupported, "aufs has no option %q", options[0])
	}
	return open(root)
}

// open makes the directories of a driver.
func open(root string) (*Driver, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	d := &Driver{root: root, active: map[string]int{}}
	for _, dir := range []string{layersDir, diffDir, mountsDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return nil, err
		}
	}
	d.naive = graphdriver.NaiveDiffDriver{ProtoDriver: d, IDMap: user.IdentityMapping{}}
	return d, nil
}

// supported looks for aufs in a list as in /proc/filesystems.
func supported(list string) error {
	data, err := os.ReadFile(list)
	if err != nil {
		return errors.Join(ErrAufsNotSupported, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text()) // "nodev" comes first, if at all
		if len(fields) > 0 && fields[len(fields)-1] == "aufs" {
			return nil
		}
	}
	return ErrAufsNotSupported
}

// Migrate moves the images and containers of Docker before 0.7 into a driver: the changes of each image from
// path/graph/ID/layer, and those of each container from path/containers/ID/rw. Each gets a layer of its ID. A container's
// layer is a child of a layer ID-init, which setupInit prepares for all containers alike. It does nothing if path has no
// directory graph.
//
// [oldgraph.Into] says how the files come into the driver. In short: a [Driver] gets the directory itself by a rename, or
// by a symbolic link if the directory is mounted. Drivers that keep whole trees, such as btrfs and zfs, get the changes
// merged into a clone of the parent. They share the data on the same filesystem, and the old files are removed
// afterwards. After an error or a crash, the next call goes on.
func Migrate(driver graphdriver.Driver, path string, setupInit func(path string) error) error {
	options := oldgraph.IntoOptions{SetupInit: setupInit}
	if d, ok := driver.(*Driver); ok {
		options.Changes = d.diff
	}
	return oldgraph.Into(context.Background(), driver, path, options)
}
