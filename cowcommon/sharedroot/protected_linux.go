package sharedroot

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/treeat"
)

// unprotect takes the flags "immutable" and "append only" off a file, if it can have them.
func unprotect(file treeat.File) error {
	fd, err := treeat.Open(file.Dir, file.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil // absent, a symbolic link, a socket or a device without a driver
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return nil
	}
	if err := btrfsctl.AllowUnlink(fd); err != nil && !errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("take its protection away: %w", err)
	}
	return nil
}

// unprotectTree takes the protection off a directory and all that is below it.
func (f *folder) unprotectTree(dir int, name string) error {
	if err := unprotect(treeat.File{Dir: dir, Name: name, FD: -1}); err != nil {
		return err
	}
	return eachEntry(dir, name, func(e *entry) error {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		if e.kind != unix.DT_DIR && e.kind != unix.DT_REG {
			return nil
		}
		return unprotect(e.source())
	})
}
