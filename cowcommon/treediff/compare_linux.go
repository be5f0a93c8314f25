package treediff

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

func compare(ctx context.Context, topPath, basePath string, hints *Hints, extra Extra) ([]archive.Change, error) {
	w := newWalk(topPath, basePath, hints)
	w.extra = extra
	changes, err := w.changeList(ctx)
	if err != nil {
		return nil, fmt.Errorf("treediff: compare: %w", err)
	}
	return changes, nil
}

func (w *walk) changeList(ctx context.Context) ([]archive.Change, error) {
	if err := w.run(ctx); err != nil {
		return nil, err
	}
	w.listLate()
	slices.SortFunc(w.changes, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) })
	return w.changes, nil
}

// compareEntries compares all that the directory d holds in both trees. Subdirectories of top become children
// of d.
func (w *worker) compareEntries(d *dir) error {
	var err error
	for s := range w.entries {
		if w.entries[s], err = w.lister.list(d.fd[s], w.entries[s]); err != nil {
			return w.fail("read directory", side(s), "", err)
		}
	}
	a, b := w.entries[top], w.entries[base]
	sameDev := d.id[top].dev == d.id[base].dev

	// Clones are listed in the same order up to the first name that only one has. Only the rest needs sorting.
	n := 0
	for n < len(a) && n < len(b) && a[n].name == b[n].name {
		if err := w.compareEntry(d, a[n], b[n], sameDev); err != nil {
			return err
		}
		n++
	}
	a, b = a[n:], b[n:]
	byName := func(a, b entry) int { return strings.Compare(a.name, b.name) }
	slices.SortFunc(a, byName)
	slices.SortFunc(b, byName)
	for len(a) > 0 || len(b) > 0 {
		var x, y entry
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].name < b[0].name:
			x, y, a = a[0], entry{kind: absent}, a[1:]
		case len(a) == 0 || b[0].name < a[0].name:
			x, y, b = entry{name: b[0].name, kind: absent}, b[0], b[1:]
		default:
			x, y, a, b = a[0], b[0], a[1:], b[1:]
		}
		if err := w.compareEntry(d, x, y, sameDev); err != nil {
			return err
		}
	}
	return nil
}

// compareEntry compares one entry of top with that of the same name in base. Either may be absent.
func (w *worker) compareEntry(d *dir, a, b entry, sameDev bool) error {
	// Two names of one inode. Directories are left out: where one is a mount point or a nested subvolume,
	// d_ino is not its inode number.
	if sameDev && a.ino == b.ino && a.kind == b.kind && a.kind != dirKind && a.kind != unknown {
		return nil
	}
	return w.compareName(d, a.name, [2]kind{a.kind, b.kind}, d.hint.child(a.name))
}

// compareHinted compares the hinted names in the directory d.
func (w *worker) compareHinted(d *dir) error {
	for name, n := range d.hint.children {
		if !validName(name) {
			continue
		}
		if err := w.compareName(d, name, [2]kind{}, n); err != nil {
			return err
		}
	}
	return nil
}

// validName reports whether a hinted name can be looked up as a name. Hints may stem from hostile input.
func validName(name string) bool {
	return name != "." && name != ".." && strings.IndexByte(name, 0) < 0
}

// addEntries lists all that the directory d of top holds as added.
func (w *worker) addEntries(d *dir) error {
	var err error
	if w.entries[top], err = w.lister.list(d.fd[top], w.entries[top]); err != nil {
		return w.fail("read directory", top, "", err)
	}
	for _, e := range w.entries[top] {
		if err := w.compareName(d, e.name, [2]kind{e.kind, absent}, nil); err != nil {
			return err
		}
	}
	return nil
}

// compareName compares the files of a name in the directory d of both trees, as far as its kinds are known. A
// directory in top becomes a child of d, anything else is decided.
func (w *worker) compareName(d *dir, name string, is [2]kind, hint *node) error {
	if w.stopped.Load() {
		return errStopped
	}
	if d.parent == nil && name == sharedmark.Dir {
		if err := w.hideShared(d, &is); err != nil {
			return err
		}
	}
	var known [2]bool // in w.st
	for s := range is {
		if is[s] == unknown {
			if err := w.stat(d, side(s), name, &is[s]); err != nil {
				return err
			}
			known[s] = true
		}
	}
	// Only two files of one type need a closer look. In a live tree the type may be another by then.
	if is[top] == is[base] && is[top] != dirKind && is[top] != absent {
		for s := range is {
			if known[s] {
				continue
			}
			if err := w.stat(d, side(s), name, &is[s]); err != nil {
				return err
			}
		}
	}

	switch {
	case is[top] == dirKind:
		d.children = append(d.children, child{name: name, base: is[base], hint: hint})
		return nil
	case is[top] == absent && is[base] == absent:
		return nil
	case is[top] == absent:
		return w.list(d, name, archive.ChangeDelete)
	case is[base] == absent:
		return w.list(d, name, archive.ChangeAdd)
	case is[top] != is[base]:
		return w.list(d, name, archive.ChangeModify)
	}
	same, err := w.sameFile(d, name, is[top], hint)
	if same && err == nil {
		same, err = w.sameExtra(name, [2]treeat.File{{Dir: d.fd[top], Name: name, FD: -1}, {Dir: d.fd[base], Name: name, FD: -1}})
	}
	if same || err != nil {
		return err
	}
	return w.list(d, name, archive.ChangeModify)
}

// hideShared makes the directory absent that Cowshed has at the root of a shared root.
func (w *worker) hideShared(d *dir, is *[2]kind) error {
	for s := range is {
		if !d.has[s] || is[s] == absent {
			continue
		}
		hidden, err := sharedmark.IsIn(d.fd[s])
		if err != nil {
			return w.fail("getxattr", side(s), sharedmark.Dir, err)
		}
		if hidden {
			is[s] = absent
		}
	}
	return nil
}

// sameFile reports whether two files of one type that is not directory, described by w.st, are equal.
func (w *worker) sameFile(d *dir, name string, is kind, hint *node) (bool, error) {
	a, b := &w.st[top], &w.st[base]
	if !sameStat(a, b) || a.Size != b.Size || !sameTime(a.Mtime, b.Mtime) {
		return false, nil
	}
	for s := range w.caps {
		if err := w.caps[s].readAt(d.fd[s], name); err != nil {
			return false, w.fail("getxattr", side(s), name, err)
		}
	}
	switch {
	case !w.caps[top].equal(&w.caps[base]):
		return false, nil
	case w.hints == nil:
		return true, nil
	case !hint.has(Written) && w.cloned(inodeOf(a), inodeOf(b)):
		return true, nil
	case is == unix.DT_REG:
		return w.sameBytes(d, name)
	case is == unix.DT_LNK:
		return w.sameTarget(d, name)
	}
	return true, nil
}

// sameStat compares the attributes whose difference is a change in files of every type.
func sameStat(a, b *unix.Statx_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid &&
		a.Rdev_major == b.Rdev_major && a.Rdev_minor == b.Rdev_minor
}

// sameTime compares times of modification. Layer tars hold whole seconds, so a time without nanoseconds
// equals any within its second.
func sameTime(a, b unix.StatxTimestamp) bool {
	return a.Sec == b.Sec && (a.Nsec == b.Nsec || a.Nsec == 0 || b.Nsec == 0)
}

// enter opens a child of the directory d and compares it with its like in base. It returns nil if there is
// nothing to be looked at below it.
func (w *worker) enter(d *dir, c child) (*dir, error) {
	sub := &dir{parent: d, name: c.name, fd: [2]int{-1, -1}, hint: c.hint}
	isTop, err := w.openChild(sub, top)
	if err != nil {
		sub.close()
		return nil, err
	}
	if w.size != nil {
		if isTop != dirKind {
			return nil, nil
		}
		return sub, nil
	}
	isBase := c.base
	if isBase == dirKind {
		if isBase, err = w.openChild(sub, base); err != nil {
			sub.close()
			return nil, err
		}
	}

	switch {
	case isTop != dirKind: // it was one a moment ago
		sub.close()
		switch {
		case isTop == absent && isBase == absent:
			return nil, nil
		case isTop == absent:
			return nil, w.list(d, c.name, archive.ChangeDelete)
		case isBase == absent:
			return nil, w.list(d, c.name, archive.ChangeAdd)
		}
		return nil, w.list(d, c.name, archive.ChangeModify)
	case isBase == absent:
		sub.changed, sub.kind = true, archive.ChangeAdd
		return sub, nil
	case isBase != dirKind:
		sub.changed, sub.kind = true, archive.ChangeModify
		return sub, nil
	case sub.id[top] == sub.id[base]: // one directory seen twice
		sub.close()
		return nil, nil
	}

	same := sameStat(&w.st[top], &w.st[base])
	for s := range w.caps {
		if err := w.caps[s].readFd(sub.fd[s]); err != nil {
			sub.close()
			return nil, w.fail("getxattr", side(s), c.name, err)
		}
	}
	if same && w.caps[top].equal(&w.caps[base]) {
		same, err = w.sameExtra(c.name, [2]treeat.File{{FD: sub.fd[top]}, {FD: sub.fd[base]}})
		if err != nil {
			sub.close()
			return nil, err
		}
	}
	sub.changed = !same || !w.caps[top].equal(&w.caps[base])
	sub.kind = archive.ChangeModify
	sub.byHint = d.byHint && !c.hint.has(Deep) && (w.hints.ByName || w.cloned(sub.id[top], sub.id[base]))
	return sub, nil
}

// cloned reports whether an inode of top is the clone of an inode in base, so that hints cover their differences. An
// inode number may be used again after a while, but then the time of creation is another. Beyond a mount or the root
// of a nested subvolume the numbers are those of another filesystem and say nothing.
func (w *walk) cloned(a, b inode) bool {
	return a.ino == b.ino && a.dev == w.roots[top].id.dev && b.dev == w.roots[base].id.dev &&
		(a.btime == b.btime || a.btime == noTime || b.btime == noTime)
}
