package trees

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/migrate"
)

// verifier compares a new tree with its source.
type verifier struct {
	ctx        context.Context
	marks      treecopy.Marks // of want, if it is a directory of changes
	files      bool           // it has files that are marks of removed names
	attributes bool           // it has devices and attributes that are

	links   map[inode]inode // from the source's inode to the tree's, of files with several names
	linked  map[inode]inode // the other way
	buffers [2][]byte
}

func verify(ctx context.Context, got, want, base *os.File, form migrate.Form) (err error) {
	v := &verifier{
		ctx: ctx, marks: marksOf(form), files: form == migrate.Aufs || form == migrate.FuseOverlay,
		attributes: form == migrate.Overlay || form == migrate.FuseOverlay, links: make(map[inode]inode), linked: make(map[inode]inode),
		buffers: [2][]byte{make([]byte, 1<<17), make([]byte, 1<<17)},
	}
	if form == migrate.Whole {
		base = nil
	}
	isContent := v.marks.IsContent
	if form == migrate.Whole {
		isContent = treecopy.IsContent
	}
	var dirs [3]*dir
	defer func() { err = errors.Join(err, dirs[0].close(), dirs[1].close(), dirs[2].close()) }()
	for i, f := range []*os.File{got, want, base} {
		if dirs[i], err = root(f, isContent); err != nil {
			return err
		}
	}
	g, err := dirs[0].self()
	if err != nil {
		return err
	}
	w, err := dirs[1].self()
	if err != nil {
		return err
	}
	if g.st.Mode != w.st.Mode || g.st.Uid != w.st.Uid || g.st.Gid != w.st.Gid {
		return difference("", "mode or owner")
	}
	return v.dirs(dirs[0], dirs[1], dirs[2], 0)
}

// removed are the names that a directory of changes removes, and whether it hides all below it.
type removed struct {
	names  map[string]bool
	opaque bool
}

// dirs compares directories. Names that want has not are as in base, which is nil for none.
func (v *verifier) dirs(got, want, base *dir, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	if err := context.Cause(v.ctx); err != nil {
		return err
	}
	names, err := want.names()
	if err != nil {
		return err
	}
	gone := removed{names: make(map[string]bool)}
	if v.attributes {
		if err := v.opaque(want, &gone); err != nil {
			return err
		}
	}
	listed := make(map[string]bool, len(names))
	for _, name := range names {
		if v.files && strings.HasPrefix(name, whiteoutPrefix) {
			switch {
			case name == opaqueMark:
				gone.opaque = true
			case !strings.HasPrefix(name, metaPrefix):
				gone.names[strings.TrimPrefix(name, whiteoutPrefix)] = true
			}
			continue
		}
		w, err := want.entry(name)
		if err != nil {
			return err
		}
		if w == nil {
			return difference(join(want.path, name), "the source changes")
		}
		if v.attributes {
			whiteout, err := w.isWhiteout(v.marks)
			if err != nil {
				return err
			}
			if whiteout {
				gone.names[name] = true
				continue
			}
		}
		listed[name] = true
	}
	if gone.opaque {
		base = nil
	}
	for _, name := range names {
		if listed[name] {
			if err := v.name(got, want, base, name, gone.names[name], depth); err != nil {
				return err
			}
		}
	}
	return v.rest(got, base, listed, gone.names, depth)
}

// opaque finds the attribute by which overlayfs marks a directory that hides the one below.
func (v *verifier) opaque(want *dir, gone *removed) error {
	self, err := want.self()
	if err != nil {
		return err
	}
	value, ok, err := self.mark(v.marks, "opaque")
	gone.opaque = gone.opaque || ok && value == "y"
	return err
}

// mark returns the value of a mark of an overlay filesystem; ok is false if there is none.
func (e *entry) mark(marks treecopy.Marks, name string) (value string, ok bool, err error) {
	for _, space := range marks.Spaces() {
		value, ok, err := e.attribute(space + name)
		if ok || err != nil {
			return string(value), ok, err
		}
	}
	return "", false, nil
}

// isWhiteout reports whether overlayfs means a removed name by the entry.
func (e *entry) isWhiteout(marks treecopy.Marks) (bool, error) {
	if e.kind() == unix.S_IFCHR && e.st.Rdev == 0 {
		return true, nil
	}
	if !e.isPlain() || e.st.Size != 0 {
		return false, nil
	}
	_, ok, err := e.mark(marks, "whiteout")
	return ok, err
}

// name compares a name that the source has.
func (v *verifier) name(got, want, base *dir, name string, replaced bool, depth int) error {
	g, err := got.entry(name)
	if err != nil {
		return err
	}
	w, err := want.entry(name)
	if err != nil {
		return err
	}
	if g == nil || w == nil {
		return difference(join(got.path, name), "it is missing")
	}
	how, err := differs(g, w)
	if err != nil {
		return err
	}
	if how != "" {
		return difference(g.path(), "%s", how)
	}
	switch {
	case g.isDir():
		var b *entry
		if !replaced {
			if b, err = base.entry(name); err != nil {
				return err
			}
		}
		return v.sub(g, w, b, depth)
	case g.isPlain():
		if err := context.Cause(v.ctx); err != nil {
			return err
		}
		data, err := v.data(w, base)
		if err != nil {
			return err
		}
		same, err := sameBytes(g, data, &v.buffers)
		if err != nil {
			return err
		}
		if !same {
			return difference(g.path(), "content")
		}
	}
	return v.link(g, w)
}

// data is the file that has the content of a source's file: the file itself, or the file below of a metacopy.
func (v *verifier) data(w *entry, base *dir) (*entry, error) {
	if !v.attributes {
		return w, nil
	}
	_, is, err := w.mark(v.marks, "metacopy")
	if err != nil || !is {
		return w, err
	}
	b, err := base.entry(w.name)
	if err == nil && (b == nil || !b.isPlain() || b.st.Size != w.st.Size) {
		err = difference(w.path(), "its data is not in the layer below")
	}
	return b, err
}

// link compares hard links: two names are of one file in both trees, or in none.
func (v *verifier) link(g, w *entry) error {
	if !g.isLink() && !w.isLink() {
		return nil
	}
	other, known := v.links[w.inode()]
	if known && other != g.inode() {
		return difference(g.path(), "it is not a hard link of the same file")
	}
	back, known := v.linked[g.inode()]
	if known && back != w.inode() {
		return difference(g.path(), "it is a hard link of another file")
	}
	v.links[w.inode()], v.linked[g.inode()] = g.inode(), w.inode()
	return nil
}

// sub compares directories below a name. b is nil, or not a directory, where base has none.
func (v *verifier) sub(g, w, b *entry, depth int) (err error) {
	var dirs [3]*dir
	defer func() { err = errors.Join(err, dirs[0].close(), dirs[1].close(), dirs[2].close()) }()
	for i, e := range []*entry{g, w, b} {
		if !e.isDir() {
			continue
		}
		if dirs[i], err = e.dir.sub(e.name); err != nil {
			return err
		}
	}
	return v.dirs(dirs[0], dirs[1], dirs[2], depth+1)
}

// rest compares the names that the source does not list. They are as in base.
func (v *verifier) rest(got, base *dir, listed, gone map[string]bool, depth int) error {
	names, err := got.names()
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
		if listed[name] {
			continue
		}
		b, err := base.entry(name)
		if err != nil {
			return err
		}
		if b == nil || gone[name] {
			return difference(join(got.path, name), "the source does not have it")
		}
		if err := v.unchanged(got, b, name, depth); err != nil {
			return err
		}
	}
	names, err = base.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !there[name] && !gone[name] {
			return difference(join(base.path, name), "it is missing, and the layer below has it")
		}
	}
	return nil
}

// unchanged compares a name with that of the layer below. A clone keeps inode numbers and times of change.
func (v *verifier) unchanged(got *dir, b *entry, name string, depth int) (err error) {
	g, err := got.entry(name)
	if err != nil {
		return err
	}
	if g == nil {
		return difference(join(got.path, name), "it vanishes")
	}
	how, err := differs(g, b)
	if err != nil {
		return err
	}
	untouched := g.st.Ino == b.st.Ino && g.st.Ctim == b.st.Ctim
	if how == "" && g.isPlain() && !untouched {
		same, err := sameBytes(g, b, &v.buffers)
		if err != nil {
			return err
		}
		if !same {
			how = "content"
		}
	}
	if how != "" {
		return difference(g.path(), "%s, though only the layer below has it", how)
	}
	if !g.isDir() {
		return nil
	}
	x, err := got.sub(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	y, err := b.dir.sub(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, y.close()) }()
	if depth+1 > maxDepth {
		return errTooDeep
	}
	if err := context.Cause(v.ctx); err != nil {
		return err
	}
	return v.rest(x, y, nil, nil, depth+1)
}
