package plugin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// holder is a driver that counts the Gets of each layer that have no Put yet. All layers exist but "gone".
type holder struct {
	*fake
	labels map[string][]string // by layer, one for each Get
}

func (h holder) Get(id, mountLabel string) (string, error) {
	if id == "gone" {
		return h.fake.Get(id, mountLabel)
	}
	h.labels[id] = append(h.labels[id], mountLabel)
	return "/layers/" + id, nil
}

func (h holder) Put(id string) error {
	if labels := h.labels[id]; len(labels) > 1 {
		h.labels[id] = labels[1:]
	} else {
		delete(h.labels, id)
	}
	return nil
}

// openHolders returns a function that opens one after the other, and where the latest one is.
func openHolders() (func(InitRequest) (graphdriver.Driver, error), *holder) {
	var latest holder
	return func(InitRequest) (graphdriver.Driver, error) {
		latest = holder{fake: &fake{}, labels: make(map[string][]string)}
		return latest, nil
	}, &latest
}

// TestHeldLayers: a driver that is opened again holds the engine's layers, until the engine stops or starts again.
func TestHeldLayers(t *testing.T) {
	testfs.CheckLeaks(t)
	options := AdapterOptions{StateFile: filepath.Join(t.TempDir(), "state.json")}
	open, latest := openHolders()
	adapter := NewAdapter(open, options)
	require.NoError(t, adapter.Init("/home", nil, nil, nil))
	for _, id := range []string{"once", "twice", "twice", "back", "more", "once-init"} {
		_, err := adapter.Get(id, "label of "+id)
		require.NoError(t, err)
	}
	require.NoError(t, adapter.Put("back"))
	require.NoError(t, adapter.Put("never got"))
	_, err := adapter.Get("gone", "")
	require.Error(t, err)

	// Without Close, as after kill -9.
	adapter = NewAdapter(open, options)
	require.NoError(t, adapter.Resume())
	assert.Equal(t, map[string][]string{
		"once": {"label of once"}, "twice": {"label of twice", "label of twice"}, "more": {"label of more"},
	}, latest.labels)
	require.NoError(t, adapter.Put("twice"))
	require.NoError(t, adapter.Put("more"))
	require.NoError(t, adapter.Close())

	adapter = NewAdapter(open, options)
	require.NoError(t, adapter.Put("once"), "the first request opens the driver")
	assert.Equal(t, map[string][]string{"twice": {"label of twice"}}, latest.labels)

	require.NoError(t, adapter.Init("/home", nil, nil, nil), "the engine starts again")
	assert.Empty(t, latest.labels)
	_, err = adapter.Get("once", "")
	require.NoError(t, err)
	require.NoError(t, adapter.Cleanup())
	assert.NoDirExists(t, adapter.held.dir)
}

// TestHeldLayerIsGone: a layer that cannot be had again does not keep the rest from it.
func TestHeldLayerIsGone(t *testing.T) {
	options := AdapterOptions{StateFile: filepath.Join(t.TempDir(), "state.json")}
	open, latest := openHolders()
	adapter := NewAdapter(open, options)
	require.NoError(t, adapter.Init("/home", nil, nil, nil))
	for _, id := range []string{"gone", "there"} {
		require.NoError(t, adapter.held.add(id, "", 1))
	}
	adapter = NewAdapter(open, options)
	require.NoError(t, adapter.Resume())
	assert.Equal(t, map[string][]string{"there": {""}}, latest.labels)
	require.NoError(t, adapter.Close())
}

// TestHeldIsRemoved: when the engine removes a layer, the uses that were had again are given back, and no more.
func TestHeldIsRemoved(t *testing.T) {
	options := AdapterOptions{StateFile: filepath.Join(t.TempDir(), "state.json")}
	open, latest := openHolders()
	adapter := NewAdapter(open, options)
	require.NoError(t, adapter.Init("/home", nil, nil, nil))
	for _, id := range []string{"lost", "lost", "both"} {
		_, err := adapter.Get(id, "")
		require.NoError(t, err)
	}
	adapter = NewAdapter(open, options)
	require.NoError(t, adapter.Resume())
	for range 2 {
		_, err := adapter.Get("both", "")
		require.NoError(t, err)
	}
	require.NoError(t, adapter.Put("both"))
	require.NoError(t, adapter.Remove("lost"))
	require.NoError(t, adapter.Remove("both"))
	assert.Equal(t, map[string][]string{"both": {""}}, latest.labels)
	entries, err := os.ReadDir(adapter.held.dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "both", entries[0].Name())
	require.NoError(t, adapter.Remove("both"))
	assert.Equal(t, map[string][]string{"both": {""}}, latest.labels, "what the engine has got since stays")
	require.NoError(t, adapter.Close())
}

// TestHeldCannotBeKept: the engine is not given a layer that it would lose.
func TestHeldCannotBeKept(t *testing.T) {
	open, latest := openHolders()
	adapter := NewAdapter(open, AdapterOptions{StateFile: filepath.Join(t.TempDir(), "state.json")})
	require.NoError(t, adapter.Init("/home", nil, nil, nil))
	adapter.held.dir = "/proc/self/none"
	_, err := adapter.Get("x", "")
	require.Error(t, err)
	assert.Empty(t, latest.labels)
	adapter.held.dir = ""
	require.NoError(t, adapter.Close())
}
