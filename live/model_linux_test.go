package live_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/live"
)

// TestModel does random operations on a tree of forks, while a writer is at work in one layer. It compares layers and
// snapshots with plain copies.
func TestModel(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		steps := 60
		if testfs.Long() {
			steps = 2000
		}
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, newHome(t), seed)
			stop := m.write("web")
			for range steps {
				m.step()
				if t.Failed() {
					break
				}
			}
			stop()
			m.removeAll()
		})
	})
}

// model has a plain copy of each layer, and of each snapshot as LAYER@NAME.
type model struct {
	home
	*rand.Rand
	dir  string
	made int
	log  []string
}

func newModel(t *testing.T, h home, seed uint64) *model {
	t.Helper()
	m := &model{home: h, Rand: rand.New(rand.NewPCG(seed, 1)), dir: filepath.Join(filepath.Dir(h.records), "model")}
	require.NoError(t, os.Mkdir(m.dir, 0o755))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("operations: %q", m.log)
		}
	})
	h.image("distro")
	h.edit("distro", m.changeTree)
	h.clone("web", "distro")
	m.change("web")
	return m
}

// known lists the layers or snapshots of which there are copies.
func (m *model) known(snapshots bool) (names []string) {
	m.t.Helper()
	entries, err := os.ReadDir(m.dir)
	require.NoError(m.t, err)
	for _, e := range entries {
		if _, _, is := live.Cut(e.Name()); is == snapshots {
			names = append(names, e.Name())
		}
	}
	return names
}

func (m *model) copyTree(from, name string) {
	m.t.Helper()
	to := filepath.Join(m.dir, name)
	require.NoError(m.t, os.RemoveAll(to))
	out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput()
	require.NoError(m.t, err, "%s", out)
}

func (m *model) copyOf(name string) string { return filepath.Join(m.dir, name) }

// tree is the part of a layer that only the operations change.
const tree = "tree"

func (m *model) change(layer string) {
	m.t.Helper()
	m.edit(layer, func(dir string) {
		m.changeTree(dir)
		m.copyTree(filepath.Join(dir, tree), layer)
	})
}

func (m *model) changeTree(dir string) {
	m.t.Helper()
	require.NoError(m.t, os.MkdirAll(filepath.Join(dir, tree), 0o755))
	f := forest.New(m.t, m.Uint64(), filepath.Join(dir, tree))
	f.Plain = true
	f.Change(1 + m.IntN(20))
}

// check compares a layer or snapshot with its copy.
func (m *model) check(name string) {
	m.t.Helper()
	volume := name
	if layer, snapshot, ok := live.Cut(name); ok {
		s, err := m.Get(layer, snapshot)
		require.NoError(m.t, err, name)
		volume = s.Volume
	}
	m.edit(volume, func(dir string) {
		isDir := func(path string) bool { // see TestMergeRandom
			info, err := os.Lstat(filepath.Join(m.copyOf(name), path))
			return err == nil && info.IsDir()
		}
		treecmp.Equal(m.t, m.copyOf(name), filepath.Join(dir, tree), treecmp.Options{SkipTime: isDir, LinksInTree: m.style == cowcommon.SharedRoot})
		if name != inUse { // the writer goes on between the two
			assert.NoError(m.t, checkPair(dir), name)
		}
	})
}

// inUse has the writer.
const inUse = "web"

func (m *model) step() {
	m.t.Helper()
	ctx := m.t.Context()
	layers, snapshots := m.known(false), m.known(true)
	layer := layers[m.IntN(len(layers))]
	m.made++
	switch op := m.IntN(8); {
	case op < 2:
		m.log = append(m.log, "change "+layer)
		m.change(layer)
	case op == 2:
		names := []string{fmt.Sprintf("fork-%d", m.made), fmt.Sprintf("fork-%d-b", m.made)}
		m.log = append(m.log, "fork "+layer)
		_, err := m.Fork(ctx, layer, names, live.ForkOptions{})
		require.NoError(m.t, err)
		for _, name := range names {
			m.copyTree(m.copyOf(layer), name)
			m.check(name)
		}
	case op == 3:
		m.log = append(m.log, "snapshot "+layer)
		s, err := m.Snapshot(ctx, layer, "", live.SnapshotOptions{})
		require.NoError(m.t, err)
		m.copyTree(m.copyOf(layer), layer+"@"+s.Name)
		m.check(layer + "@" + s.Name)
	case op == 4 && len(snapshots) > 0:
		m.rollback(snapshots[m.IntN(len(snapshots))])
	case op == 5 && len(snapshots) > 0:
		of, name, _ := live.Cut(snapshots[m.IntN(len(snapshots))])
		m.log = append(m.log, "remove "+of+"@"+name)
		require.NoError(m.t, m.RemoveSnapshot(ctx, of, name))
		require.NoError(m.t, os.RemoveAll(m.copyOf(of+"@"+name)))
	case op == 6 && layer != inUse:
		m.merge(layer)
	case op == 7 && layer != inUse:
		m.log = append(m.log, "remove "+layer)
		require.NoError(m.t, m.backend.Remove(ctx, layer))
		require.NoError(m.t, os.RemoveAll(m.copyOf(layer)))
		for _, s := range snapshots {
			if of, _, _ := live.Cut(s); of == layer {
				require.NoError(m.t, os.RemoveAll(m.copyOf(s)))
			}
		}
		require.NoError(m.t, m.Sweep(ctx))
	}
	all := slices.Concat(m.known(false), m.known(true))
	m.check(all[m.IntN(len(all))])
}

func (m *model) rollback(snapshot string) {
	m.t.Helper()
	layer, name, _ := live.Cut(snapshot)
	inPlace := layer == inUse || m.IntN(2) == 0
	m.log = append(m.log, fmt.Sprintf("rollback %s in place: %t", snapshot, inPlace))
	before, err := m.Rollback(m.t.Context(), layer, name, live.RollbackOptions{Live: inPlace && layer != inUse})
	if layer == inUse { // the writer would see its files go back
		require.Error(m.t, err)
		return
	}
	require.NoError(m.t, err)
	m.copyTree(m.copyOf(layer), layer+"@"+before.Name)
	m.copyTree(m.copyOf(snapshot), layer)
	m.check(layer + "@" + before.Name)
	if !inPlace {
		m.check(layer)
		return
	}
	// A change of attributes alone is in no list of changes.
	m.edit(layer, func(dir string) { m.copyTree(filepath.Join(dir, tree), layer) })
}

// merge merges a layer into that from which it was forked, unless there are conflicts. The model does not know the result:
// it knows the state of before, and that of a merge that fails.
func (m *model) merge(layer string) {
	m.t.Helper()
	v, err := m.backend.Stat(m.t.Context(), layer)
	require.NoError(m.t, err)
	from, err := m.ForkedFrom(m.t.Context(), v)
	if err != nil || !slices.Contains(m.known(false), from.Layer) || from.Layer == inUse {
		return
	}
	m.log = append(m.log, "merge "+layer+" into "+from.Layer)
	merged, err := m.Merge(m.t.Context(), layer, live.MergeOptions{})
	var conflict *live.ConflictError
	if errors.As(err, &conflict) {
		m.check(from.Layer)
		return
	}
	require.NoError(m.t, err)
	if merged.Before.Name == "" {
		m.check(from.Layer)
		return
	}
	m.copyTree(m.copyOf(from.Layer), from.Layer+"@"+merged.Before.Name)
	m.check(from.Layer + "@" + merged.Before.Name)
	m.edit(from.Layer, func(dir string) { m.copyTree(filepath.Join(dir, tree), from.Layer) })
}

// write counts in two files of a layer, first in one and then in the other, until stop is called. The layer is in use.
func (m *model) write(layer string) (stop func()) {
	m.t.Helper()
	dir, err := m.backend.Mount(m.t.Context(), layer, "")
	require.NoError(m.t, err)
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 1; ; i++ {
			for _, name := range []string{"first", "second"} {
				path := filepath.Join(dir, name)
				err := os.WriteFile(path+".new", []byte(strconv.Itoa(i)), 0o644)
				if err == nil {
					err = os.Rename(path+".new", path)
				}
				if err != nil {
					ended <- err
					return
				}
			}
			select {
			case <-end:
				ended <- nil
				return
			default:
			}
		}
	}()
	return func() {
		close(end)
		require.NoError(m.t, testfs.Receive(m.t, ended))
		require.NoError(m.t, m.backend.Unmount(m.t.Context(), layer))
	}
}

// checkPair reports whether the two files of the writer are of one moment.
func checkPair(dir string) error {
	var counts [2]int
	for i, name := range []string{"first", "second"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if counts[i], err = strconv.Atoi(string(data)); err != nil {
			return err
		}
	}
	if d := counts[0] - counts[1]; d < 0 || d > 1 {
		return fmt.Errorf("torn: %v", counts)
	}
	return nil
}

// removeAll removes all layers in a random order. Nothing is left then.
func (m *model) removeAll() {
	m.t.Helper()
	layers := m.known(false)
	m.Shuffle(len(layers), func(i, j int) { layers[i], layers[j] = layers[j], layers[i] })
	for _, layer := range layers {
		require.NoError(m.t, m.backend.Remove(m.t.Context(), layer))
	}
	m.assertClean(0, "distro")
}
