// Package syncdir makes changes of a directory survive a power cut.
package syncdir

import (
	"errors"
	"os"
)

// Sync writes out creations, renames and removals in a directory, as fsync(2) does with a descriptor of it.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
