package fill

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/zfsctl"
)

// zfsClones reports whether a dataset can be cloned into the dataset of a home: both are in one pool, and in one encryption
// root.
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
	var roots [2]string
	for i, name := range []string{source, home} {
		d, err := zfs.Stats(name)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		roots[i], _ = d.Properties.Text("encryptionroot")
	}
	return roots[0] == roots[1], nil
}
