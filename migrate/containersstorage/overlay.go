package containersstorage

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// checkOverlay compares the layers below, as the driver mounts them, with the records of the parents.
func (l *lister) checkOverlay(at *layer) error {
	root, dir := l.source.root, "overlay/"+at.ID
	diff, err := root.OpenDir(dir + "/diff")
	if err != nil {
		return notFound(err)
	}
	if err := diff.Close(); err != nil {
		return err
	}
	for _, name := range []string{"diff1", "composefs-data"} {
		exists, err := root.Exists(dir + "/" + name)
		if err != nil {
			return err
		}
		if exists {
			return fault.New(errdefs.ErrNotImplemented, "the layer has files in %s", root.Join(dir, name))
		}
	}

	link, err := root.ReadFile(dir+"/link", maxSmallFile)
	if err != nil {
		return notFound(err)
	}
	at.link = string(link)
	lower, err := root.ReadFile(dir+"/lower", maxSmallFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var want []string
	for below := at.parent; below != nil; below = below.parent {
		want = append(want, "l/"+below.link)
	}
	if string(lower) != strings.Join(want, ":") {
		return fault.New(errdefs.ErrDataLoss, "the file %s does not name the layers below, in order", root.Join(dir, "lower"))
	}
	return nil
}
