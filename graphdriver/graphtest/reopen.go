//go:build linux

package graphtest

import (
	"bytes"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
)

var reopenTests = []Test{
	{"CleanupTwice", cleanupTwice},
	{"Reopen", reopenFindsAll},
	{"ReopenLimits", reopenFindsLimits},
}

func cleanupTwice(t testing.TB, c Config) {
	l := c.open(t)
	id := newID()
	require.NoError(t, l.Create(id, "", nil))
	l.edit(id, someContent)
	l.diff(id, "")
	require.NoError(t, l.Remove(id))
	require.NoError(t, l.Cleanup())
	require.NoError(t, l.Cleanup(), "a second Cleanup does nothing")
}

// reopenFindsAll: layers outlive the driver.
func reopenFindsAll(t testing.TB, c Config) {
	if c.Reopen == nil {
		return // Run says so
	}
	l := c.open(t)
	base, removed := newID(), newID()
	require.NoError(t, l.Create(base, "", nil))
	l.edit(base, func(w tree) { someContent(w); buildSparse(w) })
	child, sibling := newID(), newID()
	require.NoError(t, l.Create(child, base, nil))
	l.edit(child, editOf)
	require.NoError(t, l.CreateReadWrite(sibling, base, nil))
	require.NoError(t, l.Create(removed, base, nil))
	require.NoError(t, l.Remove(removed))

	trees := map[string]snapshot{base: l.scan(base), child: l.scan(child), sibling: l.scan(sibling)}
	changes, layerTar := l.changes(child, base), l.diff(child, base)

	for range 2 {
		l = layers{t, c.Reopen(t, l.Driver)}
		for id, want := range trees {
			assert.True(t, l.Exists(id))
			assertSameTree(t, want, l.scan(id), "a layer after the driver was opened again")
			require.ErrorIs(t, l.Create(id, "", nil), errdefs.ErrAlreadyExists)
		}
		assert.False(t, l.Exists(removed))
		assertSameList(t, changes, l.agree(child, base, loss{}), "the changes, as before")
		assert.True(t, bytes.Equal(layerTar, l.diff(child, base)), "the same bytes as before")
		assert.Empty(t, l.changes(sibling, base))

		grandchild := newID()
		require.NoError(t, l.Create(grandchild, child, nil))
		assertSameTree(t, trees[child], l.scan(grandchild), "a child made after the driver was opened again")
		require.NoError(t, l.Remove(grandchild))
	}
	if c.SealsParents {
		dir := l.get(base)
		assert.Error(t, tree{t: t, dir: dir}.fill("new", mib), "a sealed layer stays sealed")
		l.put(base)
	}
	for _, id := range []string{sibling, child, base} {
		require.NoError(t, l.Remove(id))
		assert.False(t, l.Exists(id))
	}
}

// reopenFindsLimits: limits outlive the driver.
func reopenFindsLimits(t testing.TB, c Config) {
	if c.Reopen == nil || c.refusesQuota(t) {
		return // Run says so
	}
	l := c.open(t)
	base, limited, free := newID(), newID(), newID()
	require.NoError(t, l.Create(base, "", nil))
	require.NoError(t, l.CreateReadWrite(limited, base, &graphdriver.CreateOpts{StorageOpt: sizeOption("20M")}))
	l.edit(limited, func(w tree) { w.fits("before", 5*mib) })
	require.NoError(t, l.CreateReadWrite(free, base, nil))

	l = layers{t, c.Reopen(t, l.Driver)}
	l.edit(limited, func(w tree) { w.fits("f", 5*mib); w.exceeds("too much", 30*mib) })
	l.edit(free, func(w tree) { w.fits("f", 40*mib) })
	for _, id := range []string{free, limited, base} {
		require.NoError(t, l.Remove(id))
	}
}
