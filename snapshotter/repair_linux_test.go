package snapshotter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

const pageSize = 4096

// overwrite damages pages of the metadata.
func (h *host) overwrite(pages ...int) {
	h.t.Helper()
	f, err := os.OpenFile(h.metadata(), os.O_RDWR, 0)
	require.NoError(h.t, err)
	for _, page := range pages {
		_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, pageSize), int64(page)*pageSize)
		require.NoError(h.t, err)
	}
	require.NoError(h.t, f.Close())
}

// pagesWith lists the pages that bolt uses and that have a text in them.
func (h *host) pagesWith(text string) (pages []int) {
	h.t.Helper()
	db, err := bolt.Open(h.metadata(), 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	require.NoError(h.t, err)
	require.NoError(h.t, db.View(func(tx *bolt.Tx) error {
		content := h.copyMetadata()
		for id := 2; int64(id)*pageSize < tx.Size(); id++ {
			info, err := tx.Page(id)
			require.NoError(h.t, err)
			if info != nil && info.Type != "free" && bytes.Contains(content[id*pageSize:(id+1)*pageSize], []byte(text)) {
				pages = append(pages, id)
			}
		}
		return nil
	}))
	require.NoError(h.t, db.Close())
	return pages
}

func (h *host) repair() *Repaired {
	h.t.Helper()
	backend := h.openBackend()
	opts := h.opts
	if opts.Layers != nil {
		opts.Layers = live.New(backend, filepath.Join(h.mnt, "live"), opts.Logger)
	}
	done, err := Repair(h.t.Context(), filepath.Dir(h.metadata()), backend, opts)
	require.NoError(h.t, err)
	require.NoError(h.t, backend.Close())
	return done
}

// TestDamagedMetadata: whichever page is damaged, New does not panic and does not destroy anything; and Repair gives
// back all known snapshots.
func TestDamagedMetadata(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	h.prepare("between", "image")
	h.write("between", "layer", []byte("text"))
	h.commit("layer", "between")
	h.prepare(container, "layer", label("name", "value"))
	h.write(container, "data", []byte("precious"))
	h.view("view", "layer")
	for i := range 40 {
		h.prepare(fmt.Sprintf("other-%02d", i), "image")
	}
	keys, volumes := h.keys(), h.volumes()
	require.NoError(t, h.Close())
	whole := h.copyMetadata()
	require.Nil(t, h.repair(), "nothing is damaged")

	for name, damage := range map[string]func(){
		"one snapshot":   func() { h.overwrite(h.pagesWith(h.nameOf(volumes, container))...) },
		"no meta page":   func() { h.overwrite(0, 1) },
		"cut off":        func() { require.NoError(t, os.Truncate(h.metadata(), 6*pageSize)) },
		"a few bytes":    func() { require.NoError(t, os.Truncate(h.metadata(), 100)) },
		"no bolt file":   func() { h.rollBack(bytes.Repeat([]byte("text"), 1<<14)) },
		"root elsewhere": func() { h.rollBack(withRootPage(whole, 1<<40)) },
		"all": func() {
			for page := 2; page*pageSize < len(whole); page++ {
				h.overwrite(page)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.rollBack(whole)
			require.NoError(t, os.Truncate(h.metadata(), int64(len(whole))))
			damage()
			damaged := h.copyMetadata()
			err := h.open()
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, "doctor --containerd --repair")
			require.Equal(t, damaged, h.copyMetadata())

			done := h.repair()
			require.NotNil(t, done)
			aside, err := os.ReadFile(done.Aside)
			require.NoError(t, err)
			assert.Equal(t, damaged, aside)
			require.NoError(t, os.Remove(done.Aside))

			require.NoError(t, h.open())
			assert.Equal(t, volumes, h.volumes())
			info, err := h.Stat(t.Context(), container)
			require.NoError(t, err)
			assert.Equal(t, snapshots.KindActive, info.Kind)
			assert.Equal(t, "precious", h.content(container, "data"))
			parent, err := h.Stat(t.Context(), info.Parent)
			require.NoError(t, err)
			assert.Equal(t, snapshots.KindCommitted, parent.Kind)
			assert.Equal(t, "text", h.content(parent.Name, "layer"))
			if name == "one snapshot" {
				assert.Equal(t, keys, h.keys())
				assert.Equal(t, "layer", info.Parent)
			}
			h.write(container, "more", nil)
			require.NoError(t, h.Close())
		})
	}
	h.rollBack(whole)
	require.NoError(t, h.open())
	assert.Equal(t, keys, h.keys())
}

// TestDamagedPages damages each page in turn.
func TestDamagedPages(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	for i := range 12 {
		h.prepare(fmt.Sprintf("key-%02d", i), "image")
	}
	keys, volumes := h.keys(), h.volumes()
	require.NoError(t, h.Close())
	whole := h.copyMetadata()
	used := h.pagesWith("")
	require.NotEmpty(t, used)
	for _, page := range used {
		h.rollBack(whole)
		h.overwrite(page)
		if err := h.open(); err == nil { // its remains are not used
			assert.Equal(t, keys, h.keys(), "page %d", page)
			require.NoError(t, h.Close())
			continue
		}
		done := h.repair()
		require.NotNil(t, done, "page %d", page)
		require.NoError(t, os.Remove(done.Aside))
		require.NoError(t, h.open(), "page %d", page)
		assert.Subset(t, h.keys(), keys[1:], "page %d", page) // all but "image", whose name is in the metadata only
		assert.Equal(t, volumes, h.volumes(), "page %d", page)
		require.NoError(t, h.Close())
	}
	h.rollBack(whole)
	require.NoError(t, h.open())
}

// nameOf finds the volume that was made for a key.
func (h *host) nameOf(volumes []string, key string) string {
	for _, volume := range volumes {
		if made, _ := keyOfVolume(volume); made == key {
			return volume
		}
	}
	h.t.Fatalf("no volume was made for %q", key)
	return ""
}

// withRootPage has both meta pages say that the root is at another page, with the checksum that they need.
func withRootPage(file []byte, page uint64) []byte {
	file = bytes.Clone(file)
	for _, meta := range [][]byte{file[16:pageSize], file[pageSize+16 : 2*pageSize]} {
		binary.LittleEndian.PutUint64(meta[16:], page)
		sum := uint64(14695981039346656037) // FNV-1a
		for _, b := range meta[:56] {
			sum = (sum ^ uint64(b)) * 1099511628211
		}
		binary.LittleEndian.PutUint64(meta[56:], sum)
	}
	return file
}

// TestRunsIntoDamage: damage that is found only while it runs is an error of the request, and of no other.
func TestRunsIntoDamage(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	h.prepare("active", "image")
	require.NoError(t, h.restart(func(cowcommon.Backend) {}))
	h.overwrite(h.pagesWithOpen("active")...)
	_, err := h.Stat(t.Context(), "active")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	_, err = h.Prepare(t.Context(), "new", "image")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	_, err = h.Prepare(t.Context(), "new", "image") // the one before holds no lock
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
}

// pagesWithOpen lists all pages that have a text in them.
func (h *host) pagesWithOpen(text string) (pages []int) {
	content := h.copyMetadata()
	for id := 2; id < len(content)/pageSize; id++ {
		if bytes.Contains(content[id*pageSize:(id+1)*pageSize], []byte(text)) {
			pages = append(pages, id)
		}
	}
	return pages
}
