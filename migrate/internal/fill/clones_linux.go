package fill

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/zfsctl"
)

// zfsClones reports whether a dataset can be cloned into the dataset of a home: both are in one pool and one encryption root
// and show files alike, and no dataset is below it.
func zfsClones(source, home string) (clones bool, err error) {
	pool, _, _ := strings.Cut(home, "/")
	if from, _, _ := strings.Cut(source, "/"); from != pool {
		return false, nil
	}
	zfs, err := zfsctl.Open()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, zfs.Close()) }()
	var datasets [2]zfsctl.Dataset
	for i, name := range []string{source, home} {
		datasets[i], err = zfs.Stats(name)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	for _, err := range zfs.Children(source) {
		return false, err // a clone would lack it
	}
	return zfsctl.WhyNoClone(datasets[0], datasets[1]) == "", nil
}
