package treediff

import "iter"

// Flags says which differences are possible at a hinted path.
type Flags uint8

const (
	// Written marks a file whose bytes may differ although size and time of change agree.
	Written Flags = 1 << iota
	// Deep marks a directory that is to be compared in full below this point.
	Deep
)

// Hints names the paths at which two trees may differ. A path is hinted if, in either tree, the name was added,
// removed or given another inode, or if its inode was changed. The zero value says that the trees are equal. Hints is
// not safe for concurrent use, except that any number of comparisons may use it while nobody adds to it.
type Hints struct {
	// ByName says that the trees need not share inode numbers, because the hints come from elsewhere. A directory that
	// both trees have is compared by the names that are hinted in it, unless it is hinted [Deep].
	ByName bool

	root node
	n    int
}

// node is one name in the tree of hinted names.
type node struct {
	children map[string]*node
	hinted   bool // this path itself, not only one below it
	flags    Flags
}

// Add hints at path, slash-separated and relative to the root ("" or "/" is the root itself), with flags added to
// those it has. Names are bytes as the filesystem has them. An impossible path is harmless: a path in neither tree,
// one below a file, or one with a name that no file can have ("." and ".." name nothing here and are not resolved).
func (h *Hints) Add(path string, flags Flags) {
	n := &h.root
	for len(path) > 0 {
		var name string
		name, path = cutPath(path)
		if name == "" {
			continue
		}
		next := n.children[name]
		if next == nil {
			if n.children == nil {
				n.children = make(map[string]*node)
			}
			next = &node{}
			n.children[name] = next
		}
		n = next
	}
	if !n.hinted {
		n.hinted = true
		h.n++
	}
	n.flags |= flags
}

// Len is the number of distinct paths hinted.
func (h *Hints) Len() int { return h.n }

// All lists the hinted paths, each absolute, "" for the root, with its flags.
func (h *Hints) All() iter.Seq2[string, Flags] {
	return func(yield func(string, Flags) bool) { h.root.all("", yield) }
}

func (n *node) all(path string, yield func(string, Flags) bool) bool {
	if n.hinted && !yield(path, n.flags) {
		return false
	}
	for name, child := range n.children {
		if !child.all(path+"/"+name, yield) {
			return false
		}
	}
	return true
}

// child returns the node of a name below n, which may be nil.
func (n *node) child(name string) *node {
	if n == nil {
		return nil
	}
	return n.children[name]
}

// has reports whether n, which may be nil, carries a flag.
func (n *node) has(f Flags) bool { return n != nil && n.flags&f != 0 }

func cutPath(path string) (name, rest string) {
	for i := range len(path) {
		if path[i] == '/' {
			return path[:i], path[i+1:]
		}
	}
	return path, ""
}
