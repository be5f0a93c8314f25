//go:build linux

package graphtest

import (
	"archive/tar"
	"bytes"
	"path"
	"slices"
	"strings"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// loss names the differences of trees that a layer cannot carry over.
type loss struct {
	links   bool // a name that is new for an unchanged file becomes a file of its own
	times   bool // a directory of which nothing but the time changed is not in the diff
	seconds bool // times lose their fractions, and so a change made in the same second is not seen
}

// agree checks that the driver's answers about a layer and another agree, and returns its list of changes:
//
//   - Diff has an entry for each change, and twice the same bytes;
//   - DiffSize, the sum of the sizes in Diff and the result of ApplyDiff are the same;
//   - applied to a copy of parent, Diff makes the layer's tree, and then the changes are the same again.
func (l layers) agree(id, parent string, but loss) []string {
	l.t.Helper()
	changes := l.changes(id, parent)
	layerTar := l.diff(id, parent)
	assert.True(l.t, bytes.Equal(layerTar, l.diff(id, parent)), "the same two trees give the same bytes")

	want := l.scan(id)
	all := headers(l.t, layerTar)
	assertSameList(l.t, tarNames(changes, want), names(all), "the names in Diff are those of Changes")
	assert.Equal(l.t, sizes(all), l.diffSize(id, parent), "DiffSize is the sum of the sizes in Diff")

	copied := newID()
	require.NoError(l.t, l.Create(copied, parent, nil))
	assert.Equal(l.t, sizes(all), l.apply(copied, parent, layerTar), "ApplyDiff returns the sum of the sizes in Diff")
	got := l.scan(copied)
	wantApplied, gotApplied := want.asApplied(), got.asApplied()
	if but.links {
		wantApplied, gotApplied = wantApplied.without(forgetLinks), gotApplied.without(forgetLinks)
	}
	if but.times {
		wantApplied, gotApplied = wantApplied.without(forgetDirectoryTimes), gotApplied.without(forgetDirectoryTimes)
	}
	assertSameTree(l.t, wantApplied, gotApplied, "the layer that Diff was applied to")
	hasSockets := len(want.asApplied()) < len(want)-1 // they are in the changes and not in the tar
	if !hasSockets && !but.seconds {
		assertSameList(l.t, changes, l.changes(copied, parent), "the changes after Diff was applied")
	}
	require.NoError(l.t, l.Remove(copied))
	return changes
}

func (l layers) diffSize(id, parent string) int64 {
	l.t.Helper()
	size, err := l.DiffSize(id, parent)
	require.NoError(l.t, err)
	return size
}

func forgetLinks(e *entry) { e.links, e.first = 0, "" }

func forgetDirectoryTimes(e *entry) {
	if e.mode&unix.S_IFMT == unix.S_IFDIR {
		e.sec, e.nsec = 0, 0
	}
}

// tarNames lists the names that a layer tar has for the changes, sorted.
func tarNames(changes []string, layer snapshot) []string {
	list := []string{}
	for _, change := range changes {
		kind, name := change[0], strings.TrimPrefix(change[2:], "/")
		switch layer[name].mode & unix.S_IFMT {
		case unix.S_IFSOCK:
			continue
		case unix.S_IFDIR:
			name += "/"
		}
		if kind == 'D' {
			name = path.Join(path.Dir(name), ".wh."+path.Base(name))
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func names(all []*tar.Header) []string {
	list := make([]string, 0, len(all))
	for _, h := range all {
		list = append(list, h.Name)
	}
	slices.Sort(list)
	return list
}

func sizes(all []*tar.Header) int64 {
	var total int64
	for _, h := range all {
		total += h.Size
	}
	return total
}
