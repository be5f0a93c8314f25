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
	buf := make([]byte, 32<<10)
	return eachDir(dir, name, func(dir int) (subdirs []string, err error) {
		fd, err := treeat.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("open directory: %w", err)
		}
		defer unix.Close(fd)
		if err := unprotect(treeat.File{Dir: dir, Name: ".", FD: -1}); err != nil {
			return nil, err
		}
		for names := []treeat.Dirent(nil); ; {
			if names, err = treeat.ReadDir(fd, buf, names); err != nil || len(names) == 0 {
				return subdirs, err
			}
			for _, d := range names {
				if err := f.ctx.Err(); err != nil {
					return nil, err
				}
				e := entry{upper: dir, name: d.Name, kind: d.Type}
				if err := e.know(); err != nil {
					return nil, err
				}
				switch e.kind {
				case unix.DT_DIR:
					subdirs = append(subdirs, d.Name)
				case unix.DT_REG:
					if err := unprotect(e.source()); err != nil {
						return nil, err
					}
				}
			}
		}
	})
}
