package layertar

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// whiteout removes a name.
func (a *applier) whiteout(d *dir, name string) error {
	switch name {
	case "", ".", "..":
		return fmt.Errorf("%w: a whiteout of %q", ErrMalformed, name)
	}
	st, err := a.lookup(d, name)
	if err != nil {
		return err
	}
	return a.remove(d, name, st.Mode)
}

// opaque removes the files of lower layers from a directory.
func (a *applier) opaque(d *dir) error {
	if d.fresh {
		return nil
	}
	if err := a.pool.barrier(); err != nil {
		return err
	}
	return a.clearLower(d)
}

// clearLower removes files below a directory that this layer did not make.
func (a *applier) clearLower(d *dir) error {
	if d.fresh {
		return nil
	}
	names, err := a.list(d)
	if err != nil {
		return err
	}
	for _, e := range names {
		c := d.children[e.Name]
		if c != nil && c.holds() {
			if err := a.clearLower(c); err != nil {
				return err
			}
			d.wrote(e.Name, 0)
			continue
		}
		if _, ok := d.written[e.Name]; ok {
			if c != nil {
				err = a.clearLower(c) // a directory of both
			}
		} else {
			err = a.remove(d, e.Name, unix.S_IFDIR) // or whatever it is
		}
		if err != nil {
			return err
		}
	}
	d.fresh = true
	return nil
}

// holds says whether this layer put anything below a directory.
func (d *dir) holds() bool {
	todo := []*dir{d}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if len(d.written) > 0 {
			return true
		}
		for _, c := range d.children {
			todo = append(todo, c)
		}
	}
	return false
}

// list returns all names of a directory.
func (a *applier) list(d *dir) ([]treeat.Dirent, error) {
	at, err := a.dirs.fd(d)
	if err != nil {
		return nil, err
	}
	fd, err := treeat.Open(at, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd)
	var all, some []treeat.Dirent
	buf := make([]byte, 32<<10)
	for {
		some, err = treeat.ReadDir(fd, buf, some)
		if err != nil {
			return nil, fmt.Errorf("read directory: %w", err)
		}
		if len(some) == 0 {
			return all, nil
		}
		all = append(all, some...)
	}
}
