// Package homedir makes and locks the home of a Backend: the directory in which it keeps its volumes, or the files
// beside its pool. By the lock, processes that have the same home open detect each other.
package homedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/user"
)

// mode is the mode of a home and of the directories in it: the group may pass through.
const mode = 0o710

// LockFile is the path of the lock file in a home.
func LockFile(home string) string { return filepath.Join(home, "lock") }

// MakeAbove makes the directories above a home, where they are missing.
func MakeAbove(home string) error {
	return user.MkdirAllAndChown(filepath.Dir(home), 0o711, os.Getuid(), os.Getgid(), user.WithOnlyNew)
}

// Make makes a home, or a directory in it, that the group may pass through. If the name exists, Make does nothing.
func Make(dir string, group int) error {
	err := os.Mkdir(dir, mode)
	if err == nil {
		err = SetAccess(dir, group)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// SetAccess gives a directory that Cowshed made its mode and group, whatever the umask is.
func SetAccess(dir string, group int) error {
	if err := os.Chown(dir, os.Getuid(), group); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}
