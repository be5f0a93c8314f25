// Package treecmp compares two directory trees in everything that a layer carries: names, types, modes,
// owners, modification times, extended attributes, device numbers, which names are hard links of each
// other, and bytes. It is for tests; the trees may be of any depth but must not change meanwhile.
package treecmp

import "testing"

// Options has exceptions from the comparison. The zero value compares everything, except the attributes of the two
// roots, which belong to their maker.
type Options struct {
	// Roots compares the attributes of the roots as well.
	Roots bool
	// WholeSeconds takes two modification times for equal if they agree in seconds and one of them has no
	// fraction, as layers are compared.
	WholeSeconds bool
	// LinksInTree compares which names in the tree are links of each other, and not how many links a file has: overlayfs
	// counts names of lower layers that it hides.
	LinksInTree bool
	// SkipTime leaves out the modification time of a path, which is relative to the root.
	SkipTime func(path string) bool
	// SkipXattr leaves out an extended attribute.
	SkipXattr func(path, name string) bool
	// Skip leaves out a path and all that is below it.
	Skip func(path string) bool
}

// maxDiffs bounds how many differences are listed.
const maxDiffs = 50

// Equal fails the test, naming each difference, unless the trees at a and b are equal.
func Equal(t testing.TB, a, b string, opts Options) bool {
	t.Helper()
	diffs, err := Diff(a, b, opts)
	if err != nil {
		t.Errorf("compare %s with %s: %v", a, b, err)
		return false
	}
	for _, d := range diffs {
		t.Errorf("%s and %s differ: %s", a, b, d)
	}
	return len(diffs) == 0
}
