package treeat

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// RemoveTree removes a name and, if it is a directory, all that is below. An absent name is not an error.
//
// It holds two descriptors however deep the tree is: the way back up is "..", which is checked to be the
// directory that it came from.
func RemoveTree(ctx context.Context, dirfd int, name string) error {
	err := removeOne(dirfd, name, unix.DT_UNKNOWN)
	if err != unix.ENOTEMPTY { //nolint:errorlint // a bare errno
		return err
	}
	r := remover{ctx: ctx, base: dirfd, fd: dirfd, buf: make([]byte, 8<<10)}
	defer r.close()
	if err := r.down(name); err != nil {
		return err
	}
	for len(r.path) > 0 {
		next, err := r.clear()
		if err != nil {
			return err
		}
		if next != "" {
			err = r.down(next)
		} else {
			err = r.up()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remover is the state of RemoveTree.
type remover struct {
	ctx   context.Context
	base  int     // the directory that holds the tree; not the remover's
	fd    int     // the directory it is in; base, or the remover's
	path  []level // from base to fd
	buf   []byte
	names []Dirent
}

// level is a directory that a remover has gone down to.
type level struct {
	name     string
	dev, ino uint64
	removed  int // entries, since it was last entered
}

func (r *remover) close() {
	if r.fd != r.base {
		_ = unix.Close(r.fd)
		r.fd = r.base
	}
}

// down enters a subdirectory.
func (r *remover) down(name string) error {
	fd, err := Open(r.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("remove: open %s: %w", Quote(name), err)
	}
	r.close()
	r.fd = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("remove: stat %s: %w", Quote(name), err)
	}
	r.path = append(r.path, level{name: name, dev: uint64(st.Dev), ino: st.Ino}) //nolint:unconvert // narrower on some platforms
	return nil
}

// up leaves a directory that is empty, and removes it.
func (r *remover) up() error {
	last := r.path[len(r.path)-1]
	r.path = r.path[:len(r.path)-1]
	parent := r.base
	if len(r.path) > 0 {
		fd, err := Open(r.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("remove: parent of %s: %w", Quote(last.name), err)
		}
		parent = fd
	}
	r.close()
	r.fd = parent
	if len(r.path) > 0 {
		want := &r.path[len(r.path)-1]
		var st unix.Stat_t
		if err := unix.Fstat(parent, &st); err != nil {
			return fmt.Errorf("remove: parent of %s: %w", Quote(last.name), err)
		}
		if st.Ino != want.ino || uint64(st.Dev) != want.dev { //nolint:unconvert // narrower on some platforms
			return fmt.Errorf("remove: %s was moved meanwhile: %w", Quote(last.name), unix.ESTALE)
		}
		want.removed++
	}
	err := unix.Unlinkat(parent, last.name, unix.AT_REMOVEDIR)
	switch {
	case err == unix.ENOTEMPTY && last.removed > 0:
		// Reading a directory while removing from it may miss names.
		return r.down(last.name)
	case err != nil && err != unix.ENOENT:
		return fmt.Errorf("remove %s: %w", Quote(last.name), err)
	}
	return nil
}

// clear removes entries from the directory it is in, up to the first subdirectory that is not empty, which it
// returns.
func (r *remover) clear() (next string, err error) {
	here := &r.path[len(r.path)-1]
	for {
		if err := r.ctx.Err(); err != nil {
			return "", err
		}
		r.names, err = ReadDir(r.fd, r.buf, r.names)
		if err != nil {
			return "", fmt.Errorf("remove: read %s: %w", Quote(here.name), err)
		}
		if len(r.names) == 0 {
			return "", nil
		}
		for _, e := range r.names {
			err := removeOne(r.fd, e.Name, e.Type)
			if err == unix.ENOTEMPTY { //nolint:errorlint // a bare errno
				return e.Name, nil
			}
			if err != nil {
				return "", err
			}
			here.removed++
		}
	}
}

// removeOne removes a name that is not a directory, or an empty directory. ENOTEMPTY comes back as it is.
func removeOne(dirfd int, name string, typ uint8) error {
	err := error(unix.ENOTDIR)
	if typ == unix.DT_DIR || typ == unix.DT_UNKNOWN {
		err = unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
	}
	if err == unix.ENOTDIR { //nolint:errorlint // a bare errno
		err = unix.Unlinkat(dirfd, name, 0)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return unix.ENOTEMPTY
	}
	return fmt.Errorf("remove %s: %w", Quote(name), err)
}
