package trees

import (
	"context"
	"errors"
	"os"
	pathpkg "path"
	"slices"
	"strings"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treecopy"
)

// lister lists changes.
type lister struct {
	ctx  context.Context
	list []archive.Change
	size int // bytes of paths

	buffers [2][]byte
	linked  []linked
}

// linked is a name of a file that has several in one of the trees.
type linked struct {
	path     string
	to, from inode // from is zero if the name is new
	listed   bool
}

// maxPaths bounds the memory for a list of changes.
const maxPaths = 1 << 30

func changes(ctx context.Context, to, from *os.File) ([]archive.Change, error) {
	l := &lister{ctx: ctx, buffers: [2][]byte{make([]byte, 1<<17), make([]byte, 1<<17)}}
	a, err := root(to, treecopy.IsContent)
	if err != nil {
		return nil, err
	}
	defer a.close()
	b, err := root(from, treecopy.IsContent)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if _, err := l.dirs(a, b, 0); err != nil {
		return nil, err
	}
	if err := l.links(); err != nil {
		return nil, err
	}
	slices.SortFunc(l.list, func(x, y archive.Change) int { return strings.Compare(x.Path, y.Path) })
	return l.list, nil
}

func (l *lister) add(path string, kind archive.ChangeType) error {
	l.list = append(l.list, archive.Change{Path: "/" + path, Kind: kind})
	if l.size += len(path); l.size > maxPaths {
		return errTooDeep
	}
	return nil
}

// dirs lists the changes in a directory. b is nil for a directory that only one tree has.
func (l *lister) dirs(a, b *dir, depth int) (changed bool, err error) {
	if depth > maxDepth {
		return false, errTooDeep
	}
	if err := context.Cause(l.ctx); err != nil {
		return false, err
	}
	before := len(l.list)
	in, err := a.names()
	if err != nil {
		return false, err
	}
	for _, name := range in {
		x, err := a.entry(name)
		if err != nil {
			return false, err
		}
		if x == nil {
			continue
		}
		y, err := b.entry(name)
		if err != nil {
			return false, err
		}
		if err := l.entries(x, y, depth); err != nil {
			return false, err
		}
	}
	gone, err := b.names()
	if err != nil {
		return false, err
	}
	for _, name := range gone {
		if _, there := slices.BinarySearch(in, name); there {
			continue
		}
		if err := l.add(join(b.path, name), archive.ChangeDelete); err != nil {
			return false, err
		}
	}
	return len(l.list) > before, nil
}

// entries lists the change of a name, and the changes below it. y is nil for a name that only one tree has.
func (l *lister) entries(x, y *entry, depth int) (err error) {
	kind, how := archive.ChangeType(archive.ChangeAdd), "new"
	if y != nil {
		kind = archive.ChangeModify
		if how, err = differs(x, y); err != nil {
			return err
		}
		if how == "" && x.kind() == unix.S_IFREG {
			same, err := sameBytes(x, y, &l.buffers)
			if err != nil {
				return err
			}
			if !same {
				how = "content"
			}
		}
	}
	inside := false
	if x.isDir() {
		if inside, err = l.below(x, y, depth); err != nil {
			return err
		}
	}
	listed := how != "" || inside
	if x.isLink() || y != nil && y.isLink() {
		link := linked{path: x.path(), to: x.inode(), listed: listed}
		if y != nil {
			link.from = y.inode()
		}
		l.linked = append(l.linked, link)
	}
	if !listed {
		return nil
	}
	return l.add(x.path(), kind)
}

// links lists all names of a file of which some names change. The same goes for names of several files in one tree and of
// one file in the other. Only together they become hard links.
func (l *lister) links() error {
	changed := make(map[inode]bool) // by inode of to
	from, to := make(map[inode]inode), make(map[inode]inode)
	for _, link := range l.linked {
		if first, known := from[link.to]; known && first != link.from {
			changed[link.to] = true
		}
		from[link.to] = link.from
		if first, known := to[link.from]; known && first != link.to && link.from != (inode{}) {
			changed[link.to], changed[first] = true, true
		}
		to[link.from] = link.to
		if link.listed {
			changed[link.to] = true
		}
	}
	known := make(map[string]bool, len(l.list))
	for _, change := range l.list {
		known[change.Path] = true
	}
	for _, link := range l.linked {
		if link.listed || !changed[link.to] {
			continue
		}
		for path := link.path; path != "."; path = pathpkg.Dir(path) {
			if known["/"+path] {
				continue
			}
			known["/"+path] = true
			if err := l.add(path, archive.ChangeModify); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) below(x, y *entry, depth int) (changed bool, err error) {
	a, err := x.dir.sub(x.name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	var b *dir
	if y.isDir() {
		if b, err = y.dir.sub(y.name); err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, b.close()) }()
	}
	return l.dirs(a, b, depth+1)
}
