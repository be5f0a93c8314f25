package layertar

import (
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

const (
	// maxLinks is how many symbolic links one path may go through, as in the kernel (MAXSYMLINKS).
	maxLinks = 40
	// maxOpenDirs bounds the directory descriptors that are kept open.
	maxOpenDirs = 256
	// maxPaths bounds the paths whose directories are remembered.
	maxPaths = 4096
	// impliedMode is the mode of directories that an entry needs and no entry made, the same as the peers'.
	impliedMode = 0o755
)

// dir is a directory of the tree that an entry led to. It stands for the place, not for the path that was
// used: however many symbolic links lead to a directory, there is one dir for it.
type dir struct {
	parent *dir // nil: the root
	name   string
	fd     *dirFD // nil: not open

	// children are the subdirectories that entries led to.
	children map[string]*dir
	// followed are the symbolic links that entries led through.
	followed map[string]bool
	// written are the names this layer has put here, with the ticket of the job that makes each (0: made).
	written map[string]ticket
	// fresh: nothing from lower layers is in it, so that a name that is not written does not exist.
	fresh bool
	// late has the attributes that are set when everything else is done.
	late *lateMeta

	acl aclState

	newer, older *dir // neighbours in the list of open directories
}

// path is where the directory is, for messages.
func (d *dir) path() string {
	if d.parent == nil {
		return "."
	}
	var names []string
	for ; d.parent != nil; d = d.parent {
		names = append(names, d.name)
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString(names[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String()
}

// wrote records that this layer put name here.
func (d *dir) wrote(name string, t ticket) {
	if d.written == nil {
		d.written = make(map[string]ticket)
	}
	if _, ok := d.written[name]; !ok {
		name = strings.Clone(name) // not the whole path, which name is a part of
	}
	d.written[name] = t
}

// child records a subdirectory.
func (d *dir) child(name string, fresh bool) *dir {
	name = strings.Clone(name)
	c := &dir{parent: d, name: name, fresh: fresh}
	if d.children == nil {
		d.children = make(map[string]*dir)
	}
	d.children[name] = c
	return c
}

// follow records that an entry led through a symbolic link.
func (d *dir) follow(name string) {
	if d.followed == nil {
		d.followed = make(map[string]bool)
	}
	if !d.followed[name] {
		d.followed[strings.Clone(name)] = true
	}
}

// dirFD is an O_PATH descriptor of a directory that is closed when the last holder lets go of it.
type dirFD struct {
	fd   int
	refs atomic.Int32
}

func newDirFD(fd int) *dirFD {
	f := &dirFD{fd: fd}
	f.refs.Store(1)
	return f
}

func (f *dirFD) hold() *dirFD {
	f.refs.Add(1)
	return f
}

func (f *dirFD) release() {
	if f.refs.Add(-1) == 0 {
		_ = unix.Close(f.fd)
	}
}

// dirs finds directories inside a root, and keeps descriptors of those used last.
//
// Paths are resolved here and not by the kernel. Each component is opened by itself, relative to its directory and
// without following symbolic links. Links are read and resolved as if the root were the root directory, and ".."
// never leads above it.
//
// The result is that of openat2 with RESOLVE_IN_ROOT. It also tells where in the tree a path has led. It needs no
// walk from the root for a directory next to the last one. It has no limit on the length of a path, and works on
// every kernel.
type dirs struct {
	root *dir

	lastPath string // of the directory found last, and that directory
	last     *dir
	paths    map[string]*dir // found earlier; forgotten as a whole when a directory or link is taken away

	// The open directories but the root, in a ring: open.older is the one used last.
	open  dir
	count int

	// mkdir makes a directory that is missing.
	mkdir func(parent *dir, name string) (*dir, error)
	// settle waits until the writing of a name is done.
	settle func(ticket) error
}

// openRoot opens the tree at path.
func openRoot(path string, fresh bool) (*dirs, error) {
	fd, err := treeat.Open(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	ds := &dirs{root: &dir{fd: newDirFD(fd), fresh: fresh}}
	ds.open.newer, ds.open.older = &ds.open, &ds.open
	ds.forgetPaths()
	return ds, nil
}

// close lets go of all descriptors.
func (ds *dirs) close() {
	for ds.open.older != &ds.open {
		ds.shut(ds.open.older)
	}
	ds.root.fd.release()
}

// find returns the directory at a path, which is relative to the root and clean ("." is the root). A
// directory that does not exist is made if make is set, and else is ENOENT; a name on the way that is
// neither directory nor symbolic link to one is ENOTDIR.
func (ds *dirs) find(path string, make bool) (*dir, error) {
	if path == ds.lastPath {
		return ds.last, nil
	}
	d := ds.paths[path]
	if d == nil {
		start, rest := ds.root, path
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			if up := ds.paths[path[:i]]; up != nil {
				start, rest = up, path[i+1:]
			}
		}
		var err error
		d, err = ds.walk(start, rest, make)
		if err != nil {
			return nil, err
		}
		if len(ds.paths) >= maxPaths {
			ds.forgetPaths()
		}
		ds.paths[path] = d
	}
	ds.lastPath, ds.last = path, d
	return d, nil
}

// forgetPaths must be called when a directory or symbolic link is taken away.
func (ds *dirs) forgetPaths() {
	ds.lastPath, ds.last = ".", ds.root
	if len(ds.paths) != 1 {
		ds.paths = map[string]*dir{".": ds.root}
	}
}

// walk resolves a path that is relative to the directory at.
func (ds *dirs) walk(at *dir, path string, make bool) (*dir, error) {
	links := 0
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if at.parent != nil {
				at = at.parent
			}
			continue
		}
		next, link, err := ds.step(at, name, make)
		switch {
		case err != nil:
			return nil, fmt.Errorf("directory %s: %w", treeat.Quote(name), err)
		case next != nil:
			at = next
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("directory %s: %w", treeat.Quote(name), unix.ELOOP)
		}
		at.follow(name)
		if strings.HasPrefix(link, "/") {
			at = ds.root
		}
		path = link + "/" + path
	}
	return at, nil
}

// step resolves one name: to a directory, or to the target of a symbolic link.
func (ds *dirs) step(at *dir, name string, make bool) (next *dir, link string, err error) {
	if c := at.children[name]; c != nil {
		return c, "", nil
	}
	t, written := at.written[name]
	if written {
		if err := ds.settle(t); err != nil {
			return nil, "", err
		}
	}
	err = unix.ENOENT
	if !at.fresh || written {
		var atFD, fd int
		if atFD, err = ds.fd(at); err != nil {
			return nil, "", err
		}
		fd, err = treeat.OpenDir(atFD, name)
		if err == nil {
			next = at.child(name, false)
			ds.opened(next, fd)
			return next, "", nil
		}
		if err == unix.ENOTDIR { //nolint:errorlint // a bare errno
			link, err = treeat.Readlink(atFD, name)
			switch {
			case err == unix.EINVAL: //nolint:errorlint // a bare errno
				return nil, "", unix.ENOTDIR
			case err == nil && link == "":
				return nil, "", unix.ENOENT
			}
			return nil, link, err
		}
	}
	if err == unix.ENOENT && make { //nolint:errorlint // a bare errno
		next, err = ds.mkdir(at, name)
	}
	return next, "", err
}

// fd returns a descriptor of a directory. It stays open at least until maxOpenDirs others have been asked
// for.
func (ds *dirs) fd(d *dir) (int, error) {
	if d.fd != nil {
		if d.parent != nil && ds.open.older != d {
			ds.unlink(d)
			ds.link(d)
		}
		return d.fd.fd, nil
	}
	closed := []*dir{d}
	up := d.parent
	for ; up.fd == nil; up = up.parent {
		closed = append(closed, up)
	}
	for i := len(closed) - 1; i >= 0; i-- {
		c := closed[i]
		fd, err := treeat.OpenDir(c.parent.fd.fd, c.name)
		if err != nil {
			return -1, fmt.Errorf("directory %s: %w", treeat.Quote(c.name), err)
		}
		ds.opened(c, fd)
	}
	return d.fd.fd, nil
}

// hold returns the descriptor of a directory for the use of a job, which releases it.
func (ds *dirs) hold(d *dir) (*dirFD, error) {
	if _, err := ds.fd(d); err != nil {
		return nil, err
	}
	return d.fd.hold(), nil
}

// opened records the descriptor of a directory, and closes the least recently used descriptor.
func (ds *dirs) opened(d *dir, fd int) {
	d.fd = newDirFD(fd)
	ds.link(d)
	ds.count++
	if ds.count > maxOpenDirs {
		ds.shut(ds.open.newer)
	}
}

func (ds *dirs) shut(d *dir) {
	ds.unlink(d)
	ds.count--
	d.fd.release()
	d.fd = nil
}

func (ds *dirs) link(d *dir) {
	d.newer, d.older = &ds.open, ds.open.older
	d.older.newer, ds.open.older = d, d
}

func (ds *dirs) unlink(d *dir) {
	d.newer.older, d.older.newer = d.older, d.newer
	d.newer, d.older = nil, nil
}

// forget drops a directory that is about to be removed, and all that is known below it.
func (ds *dirs) forget(parent *dir, name string) {
	top := parent.children[name]
	if top == nil {
		return
	}
	delete(parent.children, name)
	todo := []*dir{top}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if d.fd != nil {
			ds.shut(d)
		}
		for _, c := range d.children {
			todo = append(todo, c)
		}
	}
}
