//go:build linux

package graphtest

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var removeTests = []Test{
	{"RemoveAbsent", removeAbsent},
	{"RemoveThenCreate", removeThenCreate},
	{"RemoveParent", removeParent},
	{"RemoveHeld", removeHeld},
	{"RemoveDeepTree", removeDeepTree},
}

func removeAbsent(t testing.TB, c Config) {
	l := c.open(t)
	other := l.filled("", someContent)
	want := l.scan(other)
	id := newID()
	require.NoError(t, l.Remove(id), "a layer that never was")
	require.NoError(t, l.Create(id, "", nil))
	require.NoError(t, l.Remove(id))
	assert.False(t, l.Exists(id))
	require.NoError(t, l.Remove(id), "a layer that was removed")
	assertSameTree(t, want, l.scan(other), "another layer")
}

// removeThenCreate: an id that is used again starts afresh.
func removeThenCreate(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	id := newID()
	for range 3 {
		require.NoError(t, l.CreateReadWrite(id, base, nil))
		l.edit(id, editOf)
		require.NoError(t, l.Remove(id))
		_, err := l.Get(id, "")
		require.ErrorIs(t, err, errdefs.ErrNotFound)

		require.NoError(t, l.Create(id, "", nil))
		assert.Len(t, l.scan(id), 1, "an id used again is empty")
		require.NoError(t, l.Remove(id))
	}
}

// removeParent: a driver refuses to remove a parent and changes nothing, or removes it and leaves the
// child whole. When the child is gone the parent can go.
func removeParent(t testing.TB, c Config) {
	l := c.open(t)
	parent := newID()
	require.NoError(t, l.Create(parent, "", nil))
	l.edit(parent, someContent)
	want := l.scan(parent)
	child := newID()
	require.NoError(t, l.Create(child, parent, nil))

	if err := l.Remove(parent); err != nil {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.True(t, l.Exists(parent))
		assertSameTree(t, want, l.scan(parent), "a parent that could not be removed")
	} else {
		assert.False(t, l.Exists(parent))
	}
	assertSameTree(t, want, l.scan(child), "the child of a layer that was to be removed")
	require.NoError(t, l.Remove(child))
	require.NoError(t, l.Remove(parent))
	assert.False(t, l.Exists(parent))
}

// removeHeld: a driver refuses to remove a layer that is held, or removes it. Others are not touched, and
// after Put it can go.
func removeHeld(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	id := newID()
	require.NoError(t, l.Create(id, base, nil))

	dir := l.get(id)
	if err := l.Remove(id); err != nil {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.True(t, l.Exists(id))
		writable(t, dir, "a layer that is held and could not be removed")
	}
	require.NoError(t, l.Put(id))
	require.NoError(t, l.Remove(id))
	assert.False(t, l.Exists(id))
	assertSameTree(t, want, l.scan(base), "the parent of the removed layer")

	require.NoError(t, l.Create(id, base, nil), "the id is free")
	assertSameTree(t, want, l.scan(id), "a layer of the same id")
	require.NoError(t, l.Remove(id))
}

// removeDeepTree: files that a container leaves behind do not keep its layer from being removed.
func removeDeepTree(t testing.TB, c Config) {
	l := c.open(t)
	id := newID()
	require.NoError(t, l.Create(id, "", nil))
	l.edit(id, func(w tree) {
		w.deep(func(w tree) { w.file("f", "x") })
		w.mkdir("closed")
		w.file("closed/f", "x")
		w.chmod("closed/f", 0)
		w.chmod("closed", 0)
	})
	require.NoError(t, l.Remove(id))
	assert.False(t, l.Exists(id))
}
