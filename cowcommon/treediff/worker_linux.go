package treediff

import (
	"io/fs"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"
)

// openDirs is how many directories of each tree a worker keeps open at most, at least 1.
var openDirs = 32

// dir is a directory of top that is being walked, with its like in base if there is one.
type dir struct {
	parent *dir   // nil: the root
	name   string // in parent
	has    [2]bool
	fd     [2]int // -1: not open
	id     [2]inode
	hint   *node // the hints in it; may be nil
	byHint bool  // nothing except hinted names can differ

	changed  bool // itself, which makes it a change of this kind
	kind     archive.ChangeType
	below    string  // path of a change below it; "": none yet
	listed   bool    // as a change
	children []child // directories that are still to be walked
}

// child is a directory of top.
type child struct {
	name string
	base kind // the name's kind in base
	hint *node
}

func (d *dir) close() {
	for s := range d.fd {
		d.closeSide(side(s))
	}
}

func (d *dir) closeSide(s side) {
	if d.fd[s] >= 0 {
		unix.Close(d.fd[s])
		d.fd[s] = -1
	}
}

// worker walks directories, depth first. The directories from the one it was given down to the present one form its
// stack. Only the lower part of a deep stack is open: upper directories are closed on the way down, and opened again
// as ".." on the way up.
type worker struct {
	*walk
	stack   []*dir
	path    []byte // of the directory at the end of the stack
	lowest  [2]int // index in stack of the first directory that is open
	waiting []int  // indexes in stack, but the last, of the directories with children left
	changes []archive.Change

	// Memory that is used again and again.
	lister  lister
	entries [2][]entry
	st      [2]unix.Statx_t
	caps    [2]capability
	xattrs  xattrReader
	content [2][]byte
}

// run walks the directory d, which is open, and all below it.
func (w *worker) run(d *dir) {
	err := w.walkTree(d)
	for _, d := range w.stack {
		d.close()
	}
	clear(w.stack)
	w.stack, w.waiting = w.stack[:0], w.waiting[:0]

	w.mu.Lock()
	defer w.mu.Unlock()
	w.walk.changes = append(w.walk.changes, w.changes...)
	w.changes = w.changes[:0]
	if err != nil && w.err == nil {
		w.err = err
		w.stopped.Store(true)
	}
}

// walkTree looks at a directory, then at its children one after the other. A child goes to another worker if
// one is idle and this one keeps something to do.
func (w *worker) walkTree(d *dir) error {
	w.path = d.appendPath(w.path[:0])
	w.lowest = [2]int{}
	w.stack = append(w.stack, d)
	if err := w.look(d); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		d := w.stack[len(w.stack)-1]
		if len(d.children) == 0 {
			if err := w.leave(d); err != nil {
				return err
			}
			continue
		}
		if w.stopped.Load() {
			return errStopped
		}
		last := len(d.children) - 1
		c := d.children[last]
		d.children = d.children[:last]

		sub, err := w.enter(d, c)
		if err != nil {
			return err
		}
		if sub == nil || w.hasMore(d) && w.give(sub) {
			continue
		}
		w.push(sub)
		if err := w.look(sub); err != nil {
			return err
		}
	}
	return nil
}

// look compares the entries of a directory, and collects its children.
func (w *worker) look(d *dir) error {
	switch {
	case w.size != nil:
		return w.measure(d)
	case d.byHint:
		return w.compareHinted(d)
	case d.has[base]:
		return w.compareEntries(d)
	}
	return w.addEntries(d)
}

// hasMore reports whether something is left to be walked beside the child of d that was taken last.
func (w *worker) hasMore(d *dir) bool { return len(d.children) > 0 || len(w.waiting) > 0 }

// push makes d, which is a child of the directory at the end of the stack, the new end.
func (w *worker) push(d *dir) {
	n := len(w.stack)
	if len(d.parent.children) > 0 {
		w.waiting = append(w.waiting, n-1)
	}
	w.stack = append(w.stack, d)
	w.path = append(append(w.path, '/'), d.name...)
	for s := range d.has {
		if d.has[s] && n-w.lowest[s] >= openDirs {
			w.stack[w.lowest[s]].closeSide(side(s))
			w.lowest[s]++
		}
	}
}

// leave ends the walk of d, which is at the end of the stack.
func (w *worker) leave(d *dir) error {
	if err := w.listDir(d); err != nil {
		return err
	}
	n := len(w.stack) - 1
	for s := range d.has {
		if !d.has[s] || w.lowest[s] < n || len(w.waiting) == 0 {
			continue
		}
		// All directories above are closed, and there is one to return to.
		if err := w.reopenParent(d, side(s)); err != nil {
			return err
		}
		w.lowest[s] = n - 1
	}
	d.close()
	w.stack[n] = nil
	w.stack = w.stack[:n]
	if n == 0 {
		return nil
	}
	w.path = w.path[:len(w.path)-1-len(d.name)]
	if i := len(w.waiting) - 1; i >= 0 && w.waiting[i] == n-1 {
		w.waiting = w.waiting[:i]
	}
	return nil
}

// openChild opens one side of a child of the directory at the end of the stack, describes it in w.st, and returns its
// kind: a directory, absent, or unknown if it is anything else.
func (w *worker) openChild(d *dir, s side) (kind, error) {
	if d.parent.fd[s] < 0 { // it vanished
		return absent, nil
	}
	fd, err := openDir(d.parent.fd[s], d.name)
	switch {
	case err != nil && noSuch(err):
		return absent, nil
	case err != nil && notDir(err):
		return unknown, nil
	case err != nil:
		return unknown, w.fail("open", s, d.name, err)
	}
	d.fd[s] = fd
	if err := statFd(fd, &w.st[s]); err != nil {
		return unknown, w.fail("stat", s, d.name, err)
	}
	d.has[s], d.id[s] = true, inodeOf(&w.st[s])
	return dirKind, nil
}

// stat describes the file of a name in one side of d, in w.st, and returns its kind.
func (w *worker) stat(d *dir, s side, name string, is *kind) error {
	*is = absent
	if d.fd[s] < 0 { // it vanished
		return nil
	}
	err := statAt(d.fd[s], name, &w.st[s])
	switch {
	case err == nil:
		*is = kindOf(&w.st[s])
		return nil
	case noSuch(err):
		return nil
	}
	return w.fail("stat", s, name, err)
}

// reopenParent opens one side of the parent of d again, which is at the end of the stack.
func (w *worker) reopenParent(d *dir, s side) error {
	p := d.parent
	if d.fd[s] >= 0 {
		fd, err := openDir(d.fd[s], "..")
		if err == nil {
			if statFd(fd, &w.st[s]) == nil && inodeOf(&w.st[s]) == p.id[s] {
				p.fd[s] = fd
				return nil
			}
			unix.Close(fd)
		}
	}

	// The directory was moved or removed while it was walked. What is below its old name now?
	fd, err := w.openPath(p, s)
	if err == nil {
		if err = statFd(fd, &w.st[s]); err != nil {
			unix.Close(fd)
		}
	}
	switch {
	case err == nil:
		p.fd[s], p.id[s] = fd, inodeOf(&w.st[s])
		return nil
	case noSuch(err) || notDir(err):
		return nil
	}
	return w.fail("open", s, "..", err)
}

// openPath opens one side of a directory by the names that lead to it from the root.
func (w *walk) openPath(d *dir, s side) (int, error) {
	var names []string
	for ; d.parent != nil; d = d.parent {
		names = append(names, d.name)
	}
	fd, err := openDir(w.roots[s].fd, ".")
	for i := len(names) - 1; i >= 0 && err == nil; i-- {
		up := fd
		fd, err = openDir(up, names[i])
		unix.Close(up)
	}
	return fd, err
}

// appendPath appends the path of d in its tree, which is "" for the root.
func (d *dir) appendPath(path []byte) []byte {
	n := 0
	for p := d; p.parent != nil; p = p.parent {
		n += 1 + len(p.name)
	}
	path = append(path, make([]byte, n)...)
	end := len(path)
	for p := d; p.parent != nil; p = p.parent {
		end -= len(p.name)
		copy(path[end:], p.name)
		end--
		path[end] = '/'
	}
	return path
}

// list lists a name in d, the directory at the end of the stack, as a change.
func (w *worker) list(d *dir, name string, kind archive.ChangeType) error {
	w.path = append(append(w.path, '/'), name...)
	path := string(w.path)
	w.path = w.path[:len(path)-1-len(name)]
	w.changes = append(w.changes, archive.Change{Path: path, Kind: kind})
	if d.below == "" {
		d.below = path
	}
	return w.hold(len(path))
}

// listDir lists d, the directory at the end of the stack, if it or something below it is a change.
// Its path is cut from one below it, so that the paths of a long chain of directories share memory.
func (w *worker) listDir(d *dir) error {
	if d.parent == nil || !d.changed && d.below == "" {
		return nil
	}
	kind := archive.ChangeType(archive.ChangeModify)
	if d.changed {
		kind = d.kind
	}
	path := d.below
	if path == "" {
		path = string(w.path)
		if err := w.hold(len(path)); err != nil {
			return err
		}
	}
	path = path[:len(w.path)]
	w.changes = append(w.changes, archive.Change{Path: path, Kind: kind})
	d.listed = true

	switch p := d.parent; {
	case len(w.stack) == 1: // another worker has the parent
		w.mu.Lock()
		w.late = append(w.late, lateChange{dir: p, path: path})
		w.mu.Unlock()
	case p.below == "":
		p.below = path
	}
	return nil
}

// hold counts memory that the change list takes.
func (w *worker) hold(bytes int) error {
	if w.held.Add(int64(bytes)) > maxPathBytes {
		return ErrTooLarge
	}
	return nil
}

// fail makes the error of a system call on a name in the directory at the end of the stack.
func (w *worker) fail(op string, s side, name string, err error) error {
	path := w.roots[s].path + string(w.path)
	if name != "" {
		path += "/" + name
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
