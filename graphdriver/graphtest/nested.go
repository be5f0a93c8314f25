//go:build linux

package graphtest

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var nestedTests = []Test{
	{"NestedVolumes", nestedVolumes},
}

// nestedVolumes: volumes of the filesystem that a container makes within its layer do not prevent making a child,
// comparing, and removing.
func nestedVolumes(t testing.TB, c Config) {
	if c.NestedVolume == nil {
		return // Run says so
	}
	l := c.open(t)
	base := l.filled("", someContent)
	id := newID()
	require.NoError(t, l.CreateReadWrite(id, base, nil))
	l.edit(id, func(w tree) {
		w = w.at(editTime)
		w.mkdir("var/lib/docker")
		for _, volume := range []string{"top", "var/lib/docker/one", "var/lib/docker/two", "var/lib/docker/two/inner"} {
			c.NestedVolume(t, w.path(volume))
			w.file(filepath.Join(volume, "f"), volume)
		}
		w.mkdir("var/lib/docker/two/d")
		c.NestedVolume(t, w.path("var/lib/docker/two/d/innermost"))
		w.file("beside", "x")
	})
	want := l.scan(id)

	changes := l.changes(id, base)
	for _, change := range []string{"A /beside", "A /top", "A /var", "A /var/lib/docker/one", "A /var/lib/docker/two"} {
		assert.Contains(t, changes, change)
	}
	l.diffSize(id, base)
	applied := l.layer(base)
	l.apply(applied, base, l.diff(id, base))
	assert.Contains(t, l.scan(applied), "beside")

	child := newID()
	require.NoError(t, l.Create(child, id, nil))
	got := l.scan(child)
	assert.Equal(t, want["beside"], got["beside"])
	assert.Contains(t, got, "var/lib/docker/two", "the place of a nested volume is there, whether or not its content is")
	l.changes(child, id)
	assertSameTree(t, want, l.scan(id), "the parent of a layer whose parent has nested volumes")

	require.NoError(t, l.Remove(child))
	require.NoError(t, l.Remove(id), "nested volumes go with their layer")
	assert.False(t, l.Exists(id))
	require.NoError(t, l.Create(id, base, nil), "the id is free")
	assertSameTree(t, l.scan(base), l.scan(id), "a new layer of the same id")
	require.NoError(t, l.Remove(id))
}
