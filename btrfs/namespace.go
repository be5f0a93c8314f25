package btrfs

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// namespace is a tree of names on its way from base to top. It begins as base, without knowing the content of base. It
// makes up an inode when the stream first mentions one of its names. Only directories need a known place.
//
// It tracks inodes and not paths. So the stream may report a change under any name of an inode, even below a directory
// that is being moved.
type namespace struct {
	root    *inode
	base    rootNames // or nil
	entries []*entry  // entries that may differ from base, in the order of their first change
	touched []*inode  // changed inodes, in the order of their first change
	passing map[*entry]struct{}
}

// inode is a file or directory that the stream has mentioned.
type inode struct {
	number   uint64   // from the command that creates the inode; 0 for inodes of base
	origin   *entry   // its name in base; nil for the root, and if base does not have it
	names    []*entry // present names; a directory has at most one
	children map[string]*entry
	isRoot   bool
	isDir    bool // known to be a directory
	touched  bool
	flags    treediff.Flags

	basePath, topPath *string // nil until found
}

// entry is a name in a directory.
type entry struct {
	dir     *inode
	name    string
	inode   *inode // the inode that has the name at present, or nil
	changed bool   // listed in namespace.entries
}

func newNamespace(base rootNames) *namespace {
	return &namespace{
		root:    &inode{isRoot: true, isDir: true},
		base:    base,
		passing: make(map[*entry]struct{}),
	}
}

// inBase reports whether base has the inode.
func (n *inode) inBase() bool { return n.isRoot || n.origin != nil }

// orphanInode returns the inode number in a temporary name: o<inode>-<generation>-<n>. The kernel makes new inodes
// under such names in the root, and moves inodes there that are in the way. Later it gives each inode its place
// (gen_unique_name in fs/btrfs/send.c). It takes n so that neither tree's root has the name.
func orphanInode(name string) (number uint64, ok bool) {
	rest, ok := strings.CutPrefix(name, "o")
	if !ok {
		return 0, false
	}
	parts := strings.Split(rest, "-")
	if len(parts) != 3 {
		return 0, false
	}
	var numbers [3]uint64
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != part {
			return 0, false
		}
		numbers[i] = n
	}
	return numbers[0], true
}

// find returns the present entry of a name in a directory. A name that the stream has not mentioned yet is as in base.
// If the stream is right, base has that name.
func (s *namespace) find(dir *inode, name []byte) (*entry, error) {
	e := dir.children[string(name)]
	switch {
	case e != nil && e.inode != nil:
		return e, nil
	case e != nil || !dir.inBase():
		return nil, inconsistent("%q does not exist", name)
	}
	e = s.entry(dir, name)
	if _, ok := orphanInode(e.name); ok && dir.isRoot && s.base != nil && !s.base(e.name) {
		return nil, &treediff.NoHintsError{Reason: "orphan", Err: fmt.Errorf("%q was never made", name)}
	}
	e.inode = &inode{origin: e, names: []*entry{e}}
	return e, nil
}

// entry returns the entry of a name in a directory. If the stream has not mentioned the name yet, the entry is new and
// has no inode.
func (*namespace) entry(dir *inode, name []byte) *entry {
	e := dir.children[string(name)]
	if e == nil {
		e = &entry{dir: dir, name: string(name)}
		if dir.children == nil {
			dir.children = make(map[string]*entry)
		}
		dir.children[e.name] = e
	}
	return e
}

// parent returns the directory that holds the last component of a path, and that component.
func (s *namespace) parent(path []byte) (dir *inode, name []byte, err error) {
	if len(path) == 0 {
		return nil, nil, inconsistent("the root cannot be made, moved or removed")
	}
	dir = s.root
	for {
		name, rest, more := bytes.Cut(path, []byte{'/'})
		if !more {
			return dir, name, nil
		}
		e, err := s.find(dir, name)
		if err != nil {
			return nil, nil, err
		}
		dir = e.inode
		dir.isDir = true
		if len(dir.names) > 1 {
			return nil, nil, inconsistent("%q is a directory and has a hard link", name)
		}
		path = rest
	}
}

// lookup returns the entry at a path other than the root's.
func (s *namespace) lookup(path []byte) (*entry, error) {
	dir, name, err := s.parent(path)
	if err != nil {
		return nil, err
	}
	return s.find(dir, name)
}

// attach gives a name to an inode. Another inode that has the name, or may have it in base, loses it.
func (s *namespace) attach(dir *inode, name []byte, n *inode) {
	if e := dir.children[string(name)]; e != nil && e.inode != nil {
		s.detach(e)
	}
	_, known := dir.children[string(name)]
	e := s.entry(dir, name)
	e.inode = n
	n.names = append(n.names, e)
	if _, ok := orphanInode(e.name); ok && dir.isRoot && !known {
		s.passing[e] = struct{}{}
		return
	}
	s.change(e)
}

// detach takes a name from its inode. A temporary name leaves no trace.
func (s *namespace) detach(e *entry) {
	n := e.inode
	n.names = slices.DeleteFunc(n.names, func(other *entry) bool { return other == e })
	e.inode = nil
	if _, ok := s.passing[e]; ok {
		delete(s.passing, e)
		delete(e.dir.children, e.name)
		return
	}
	s.change(e)
}

// change notes that an entry may differ from base.
func (s *namespace) change(e *entry) {
	if !e.changed {
		e.changed = true
		s.entries = append(s.entries, e)
	}
}

func (s *namespace) create(path []byte, number uint64, isDir bool) error {
	dir, name, err := s.parent(path)
	if err != nil {
		return err
	}
	if e := dir.children[string(name)]; e != nil && e.inode != nil {
		return inconsistent("%q exists", path)
	}
	n := &inode{number: number, isDir: isDir}
	s.attach(dir, name, n)
	// A file that base does not have counts as written, whatever its content.
	s.note(n, treediff.Written)
	return nil
}

func (s *namespace) link(path, target []byte) error {
	e, err := s.lookup(target)
	if err != nil {
		return err
	}
	dir, name, err := s.parent(path)
	if err != nil {
		return err
	}
	if e := dir.children[string(name)]; e != nil && e.inode != nil {
		return inconsistent("%q exists", path)
	}
	if e.inode.isDir {
		return inconsistent("%q is a directory", target)
	}
	s.attach(dir, name, e.inode)
	s.note(e.inode, 0)
	return nil
}

func (s *namespace) rename(path, to []byte) error {
	if bytes.Equal(path, to) {
		return nil
	}
	e, err := s.lookup(path)
	if err != nil {
		return err
	}
	dir, name, err := s.parent(to)
	if err != nil {
		return err
	}
	for d := dir; d != nil; d = d.parent() {
		if d == e.inode {
			return inconsistent("%q is moved into itself", path)
		}
	}
	n := e.inode
	s.detach(e)
	s.attach(dir, name, n)
	return nil
}

func (s *namespace) remove(path []byte) error {
	e, err := s.lookup(path)
	if err != nil {
		return err
	}
	s.detach(e)
	return nil
}

// touch notes that the inode at a path was changed.
func (s *namespace) touch(path []byte, flags treediff.Flags) error {
	if len(path) == 0 {
		s.note(s.root, flags)
		return nil
	}
	e, err := s.lookup(path)
	if err != nil {
		return err
	}
	s.note(e.inode, flags)
	return nil
}

func (s *namespace) note(n *inode, flags treediff.Flags) {
	n.flags |= flags
	if !n.touched {
		n.touched = true
		s.touched = append(s.touched, n)
	}
}

// settle decides about names in the root that look temporary and are left at the end of the stream. Each is either a
// name that somebody chose, or the sign of an incomplete stream.
func (s *namespace) settle(top rootNames) error {
	for e := range s.passing {
		number, _ := orphanInode(e.name)
		// The kernel would have made another temporary name for this inode.
		someones := e.inode.number != 0 && e.inode.number != number
		if !someones && (top == nil || !top(e.name)) {
			return &treediff.NoHintsError{Reason: "orphan", Err: fmt.Errorf("%q stays at the end of the stream", e.name)}
		}
		s.change(e)
	}
	return nil
}

// report calls add for each path at which base and top may differ, for some paths more than once. It returns the
// changed inodes that may have names unknown to the namespace.
func (s *namespace) report(add func(path string, flags treediff.Flags)) ([]changedInode, error) {
	for _, e := range s.entries {
		if dir, ok, err := e.dir.pathInBase(); err != nil {
			return nil, err
		} else if ok {
			add(join(dir, e.name), 0)
		}
		if dir, ok, err := e.dir.pathInTop(); err != nil {
			return nil, err
		} else if ok {
			add(join(dir, e.name), 0)
		}
	}
	var changed []changedInode
	for _, n := range s.touched {
		if n.isRoot {
			add("", n.flags)
			continue
		}
		mentioned := !n.inBase() || n.isDir // the stream mentions all its names
		for _, e := range n.names {
			dir, ok, err := e.dir.pathInTop()
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			path := join(dir, e.name)
			add(path, n.flags)
			if !mentioned {
				changed = append(changed, changedInode{path: path, flags: n.flags})
				mentioned = true
			}
		}
	}
	return changed, nil
}

// parent returns the directory that holds a directory at present. The result is nil for the root, and for a removed
// directory.
func (n *inode) parent() *inode {
	if len(n.names) == 0 {
		return nil
	}
	return n.names[0].dir
}

// pathInBase returns the path of a directory in base. ok is false if base does not have it.
func (n *inode) pathInBase() (path string, ok bool, err error) {
	return n.path(&n.basePath, n.origin, func(dir *inode) (string, bool, error) { return dir.pathInBase() })
}

// pathInTop returns the path of a directory in top, once the stream has ended. ok is false if top does not
// have it.
func (n *inode) pathInTop() (path string, ok bool, err error) {
	var e *entry
	if len(n.names) > 0 {
		e = n.names[0]
	}
	return n.path(&n.topPath, e, func(dir *inode) (string, bool, error) { return dir.pathInTop() })
}

// maxPath bounds the length of a path in either tree, in bytes. The kernel's paths have at most 4096 bytes, but a
// directory may have been moved since.
const maxPath = 64 << 10

// path returns the path in known if there is one. Otherwise it joins the path of the directory that holds e and e's
// name, and stores the result in known.
func (n *inode) path(known **string, e *entry, of func(*inode) (string, bool, error)) (string, bool, error) {
	switch {
	case n.isRoot:
		return "", true, nil
	case *known != nil:
		return **known, true, nil
	case e == nil:
		return "", false, nil
	}
	dir, ok, err := of(e.dir)
	if !ok || err != nil {
		return "", false, err
	}
	path := join(dir, e.name)
	if len(path) > maxPath {
		return "", false, inconsistent("a path is longer than %d bytes", maxPath)
	}
	*known = &path
	return path, true, nil
}

// join appends a name to the path of a directory.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
