//go:build linux

package graphtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var holdTests = []Test{
	{"GetTwicePutTwice", getTwicePutTwice},
	{"PutWithoutGet", putWithoutGet},
	{"ContentSurvivesPut", contentSurvivesPut},
}

// writable fails the test unless a file can be written and read in dir.
func writable(t testing.TB, dir, what string) {
	t.Helper()
	path := filepath.Join(dir, "probe")
	require.NoError(t, os.WriteFile(path, []byte(what), 0o644), what)
	content, err := os.ReadFile(path)
	require.NoError(t, err, what)
	require.Equal(t, what, string(content))
}

func getTwicePutTwice(t testing.TB, c Config) {
	l := c.open(t)
	id := l.layer("")
	dir := l.get(id)
	assert.True(t, filepath.IsAbs(dir), "%s is absolute", dir)
	assert.Equal(t, dir, l.get(id), "calls that are open at once return one path")
	writable(t, dir, "held twice")
	l.put(id)
	writable(t, dir, "held once more")
	l.put(id)
	assert.Equal(t, []string{"A /probe"}, l.changes(id, ""))

	dir = l.get(id)
	writable(t, dir, "held again")
	l.put(id)
}

func putWithoutGet(t testing.TB, c Config) {
	l := c.open(t)
	id := l.layer("")
	require.NoError(t, l.Put(id))
	require.NoError(t, l.Put(id))
	require.NoError(t, l.Put(newID()), "Put of a layer that does not exist")

	dir := l.get(id)
	writable(t, dir, "after Puts too many")
	l.get(id)
	l.put(id)
	writable(t, dir, "Puts too many do not count later")
	l.put(id)
	require.NoError(t, l.Put(id))
	l.edit(id, func(w tree) { w.file("f", "x") })
}

func contentSurvivesPut(t testing.TB, c Config) {
	l := c.open(t)
	id := l.filled("", someContent)
	want := l.scan(id)
	for range 5 {
		assertSameTree(t, want, l.scan(id), "after Put and Get")
	}
	_, err := l.Get(newID(), "")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	assertSameTree(t, want, l.scan(id), "after a failed Get of another layer")
}
