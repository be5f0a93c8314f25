//go:build linux

package graphtest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
)

// layers is a driver with the operations that the tests use most. Its methods end the test when the driver fails.
type layers struct {
	t testing.TB
	graphdriver.Driver
}

// open opens the driver under test.
func (c Config) open(t testing.TB) layers {
	t.Helper()
	return layers{t, c.New(t)}
}

// of returns the same driver for another test.
func (l layers) of(t testing.TB) layers { return layers{t, l.Driver} }

// newID returns an id as Docker's layer store makes them.
func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// layer makes a layer and returns its id. The layer is removed when the test ends, in reverse order.
func (l layers) layer(parent string) string {
	l.t.Helper()
	id := newID()
	require.NoError(l.t, l.Create(id, parent, nil))
	l.removeLater(id)
	return id
}

// readWrite makes a read-write layer with the options and returns its id, like layer.
func (l layers) readWrite(parent string, storageOpt map[string]string) string {
	l.t.Helper()
	id := newID()
	require.NoError(l.t, l.CreateReadWrite(id, parent, &graphdriver.CreateOpts{StorageOpt: storageOpt}))
	l.removeLater(id)
	return id
}

// filled makes a layer and fills it by build.
func (l layers) filled(parent string, build func(w tree)) string {
	l.t.Helper()
	id := l.layer(parent)
	l.edit(id, build)
	return id
}

func (l layers) removeLater(id string) {
	l.t.Cleanup(func() {
		if !l.t.Failed() {
			assert.NoError(l.t, l.Remove(id), "remove a layer when the test ends")
		}
	})
}

// edit calls change with the layer's tree.
func (l layers) edit(id string, change func(w tree)) {
	l.t.Helper()
	change(tree{t: l.t, dir: l.get(id), when: baseTime})
	l.put(id)
}

// get holds the layer and returns its directory.
func (l layers) get(id string) string {
	l.t.Helper()
	dir, err := l.Get(id, "")
	require.NoError(l.t, err)
	return dir
}

func (l layers) put(id string) {
	l.t.Helper()
	require.NoError(l.t, l.Put(id))
}

// scan describes the layer's tree.
func (l layers) scan(id string) snapshot {
	l.t.Helper()
	dir := l.get(id)
	defer l.put(id)
	return scan(l.t, dir)
}

// changes lists the layer's changes since parent, as "A /path", "C /path" or "D /path". It fails the test unless the
// list is sorted by path and has each path once.
func (l layers) changes(id, parent string) []string {
	l.t.Helper()
	changes, err := l.Changes(id, parent)
	require.NoError(l.t, err)
	return changeStrings(l.t, changes)
}

func changeStrings(t testing.TB, changes []archive.Change) []string {
	t.Helper()
	byPath := func(a, b archive.Change) int { return cmp.Compare(a.Path, b.Path) }
	assert.True(t, slices.IsSortedFunc(changes, byPath), "changes are sorted by path: %q", changes)
	list := make([]string, 0, len(changes))
	for i, change := range changes {
		assert.False(t, i > 0 && change.Path == changes[i-1].Path, "%q is listed twice", change.Path)
		list = append(list, change.String())
	}
	return list
}

// diff returns the bytes of the layer's diff.
func (l layers) diff(id, parent string) []byte {
	l.t.Helper()
	data, err := readDiff(l.Driver, id, parent)
	require.NoError(l.t, err)
	return data
}

func readDiff(d graphdriver.Driver, id, parent string) ([]byte, error) {
	r, err := d.Diff(id, parent)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// apply extracts the tar into the layer and returns the size that the driver says it has.
func (l layers) apply(id, parent string, layerTar []byte) int64 {
	l.t.Helper()
	size, err := l.ApplyDiff(id, parent, bytes.NewReader(layerTar))
	require.NoError(l.t, err)
	return size
}

// headers returns the headers of a tar.
func headers(t testing.TB, layerTar []byte) []*tar.Header {
	t.Helper()
	var all []*tar.Header
	for r := tar.NewReader(bytes.NewReader(layerTar)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all = append(all, h)
	}
}
