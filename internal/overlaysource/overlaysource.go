// Package overlaysource has the source of the overlays that Cowshed mounts. The kernel tells the layers of an overlay only
// as the paths that it was given. So the source names the trees that the layers are in.
//
// docs/reference/on-disk-format.md specifies the form.
package overlaysource

import (
	"fmt"
	"strconv"
	"strings"
)

// Tree identifies the subvolume or dataset that a directory is in, among those of all filesystems. It stays the same
// as long as that exists. 0 is none.
type Tree uint64

// Source is the source of an overlay.
type Source struct {
	Upper Tree   // of the volume whose changes the overlay shows
	Lower Tree   // of the volume below
	Name  string // for people, and for programs that look for the volume
}

// prefix begins each source. A source has no colon: programs such as df take a filesystem with one for a remote one.
const prefix = "cowshed/"

// String is the source as it is given to the kernel. Without both trees it is the name alone.
func (s Source) String() string {
	if s.Upper == 0 || s.Lower == 0 {
		return s.Name
	}
	return fmt.Sprintf("%s%x-%x/%s", prefix, uint64(s.Upper), uint64(s.Lower), s.Name)
}

// Has reports whether one of the layers is in a tree.
func (s Source) Has(tree Tree) bool { return tree != 0 && (s.Upper == tree || s.Lower == tree) }

// Parse reads a source. ok is false if it is not exactly as String writes it, with both trees. Anybody may mount an overlay with
// any source.
func Parse(source string) (s Source, ok bool) {
	trees, name, ok := strings.Cut(strings.TrimPrefix(source, prefix), "/")
	if !ok {
		return Source{}, false
	}
	upper, lower, _ := strings.Cut(trees, "-")
	s = Source{Upper: parseTree(upper), Lower: parseTree(lower), Name: name}
	if name == "" || strings.Contains(name, "/") || s.Upper == 0 || s.Lower == 0 || s.String() != source {
		return Source{}, false
	}
	return s, true
}

// parseTree returns 0 for a text that is no tree.
func parseTree(text string) Tree {
	tree, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0
	}
	return Tree(tree)
}
