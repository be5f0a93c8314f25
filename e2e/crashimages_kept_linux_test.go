package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/snapshotter"
)

// tree is the content of a volume: that of each file by its path. The path of a directory ends in a slash.
type tree map[string]string

func (t tree) with(changes tree) tree {
	t = maps.Clone(t)
	for path, content := range changes {
		if gone, ok := strings.CutPrefix(filepath.Base(path), ".wh."); ok {
			delete(t, filepath.Join(filepath.Dir(path), gone))
			continue
		}
		t[path] = content
	}
	return t
}

func readTree(dir string) (tree, error) {
	found := make(tree)
	return found, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		if entry.IsDir() {
			found[name+"/"] = ""
			return nil
		}
		content, err := os.ReadFile(path)
		found[name] = string(content)
		return err
	})
}

// diff lists the differences of two trees.
func (t tree) diff(want tree) (diffs []string) {
	for path, content := range want {
		if got, ok := t[path]; !ok {
			diffs = append(diffs, path+" is gone")
		} else if got != content {
			diffs = append(diffs, path+" has another content")
		}
	}
	for path := range t {
		if _, ok := want[path]; !ok {
			diffs = append(diffs, path+" should not be there")
		}
	}
	return diffs
}

// kept is the acknowledged content of a store.
type kept struct {
	volumes   map[string]keptVolume
	removed   map[string]keptVolume // may come back whole
	images    map[string]struct{}
	snapshots map[string]keptSnapshot
}

type keptVolume struct {
	parent string
	sealed bool
	limit  uint64
	files  tree // nil: not acknowledged
}

type keptSnapshot struct {
	kind   snapshots.Kind
	parent string
	limit  uint64
	files  tree // nil: not acknowledged
}

func newKept() kept {
	return kept{make(map[string]keptVolume), make(map[string]keptVolume), make(map[string]struct{}), make(map[string]keptSnapshot)}
}

func (k kept) clone() kept {
	return kept{maps.Clone(k.volumes), maps.Clone(k.removed), maps.Clone(k.images), maps.Clone(k.snapshots)}
}

// change changes a volume.
func (k kept) change(name string, change func(v *keptVolume)) {
	v := k.volumes[name]
	change(&v)
	k.volumes[name] = v
}

func (k kept) remove(name string) {
	k.removed[name] = k.volumes[name]
	delete(k.volumes, name)
}

// host is an open store: that of the command, an engine and containerd on one filesystem.
type host struct {
	s         system
	mnt       string
	d         *cowdriver.Driver
	images    *image.Store
	backend   cowcommon.Backend // of the snapshots
	snapshots *snapshotter.Snapshotter
}

// The directories of a host; on ZFS the first two are datasets.
const (
	layersRoot     = "layers"
	containersRoot = "containers"
	imagesDir      = "images"
	metadataDir    = "snapshotter"
)

func openHost(s system, mnt string) (_ *host, err error) {
	h := &host{s: s, mnt: mnt}
	if h.d, err = s.tryOpen(filepath.Join(mnt, layersRoot), user.IdentityMapping{}); err != nil {
		return nil, err
	}
	h.images = image.NewStore(filepath.Join(mnt, imagesDir), h.d, nil)
	containers, err := s.tryOpen(filepath.Join(mnt, containersRoot), user.IdentityMapping{})
	if err != nil {
		return nil, errors.Join(err, h.d.Cleanup())
	}
	h.backend = containers.Backend()
	opts := snapshotter.Options{}
	if s.shared {
		opts.RootStyle = cowcommon.SharedRoot
	}
	if h.snapshots, err = snapshotter.New(context.Background(), filepath.Join(mnt, metadataDir), h.backend, opts); err != nil {
		return nil, errors.Join(err, containers.Cleanup(), h.d.Cleanup())
	}
	return h, nil
}

func (h *host) close() error { return errors.Join(h.snapshots.Close(), h.d.Cleanup()) }

// found is the present content.
type found struct {
	h         *host
	layers    map[string]cowcommon.Volume
	images    map[string][]string // layers by name
	snapshots map[string]snapshots.Info
	volumes   map[string]string // of snapshots that have one of their own, by key
}

func (h *host) find(t *testing.T) found {
	t.Helper()
	f := found{h: h, images: make(map[string][]string), snapshots: make(map[string]snapshots.Info), volumes: make(map[string]string)}
	f.layers = volumesByName(t, h.d.Backend())
	images, err := h.images.List()
	require.NoError(t, err)
	for _, img := range images {
		f.images[img.Name] = img.Layers()
	}
	require.NoError(t, h.snapshots.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
		f.snapshots[info.Name] = info
		if info.Kind == snapshots.KindView {
			return nil
		}
		f.volumes[info.Name], err = h.snapshots.Volume(ctx, info.Name)
		return err
	}))
	return f
}

func volumesByName(t *testing.T, b cowcommon.Backend) map[string]cowcommon.Volume {
	t.Helper()
	volumes := make(map[string]cowcommon.Volume)
	for v, err := range b.Volumes(t.Context()) {
		require.NoError(t, err)
		volumes[v.Name] = v
	}
	return volumes
}

// diff lists the differences between the present and the wanted content. partial: there may also be remains of an
// unfinished import, which the next import removes.
func (f found) diff(t *testing.T, want kept, partial bool) (diffs []string) {
	t.Helper()
	for name, v := range f.layers {
		w, ok := want.volumes[name]
		if !ok {
			w, ok = want.removed[name]
		}
		if !ok {
			if !partial || !image.IsPartial(name) {
				diffs = append(diffs, name+" should not be there")
			}
			continue
		}
		for _, d := range f.diffVolume(t, v, w) {
			diffs = append(diffs, name+": "+d)
		}
	}
	diffs = append(diffs, missing("layer", f.layers, want.volumes)...)
	diffs = append(diffs, missing("image", f.images, want.images)...)
	diffs = append(diffs, missing("image that should not be there", want.images, f.images)...)
	for name, layers := range f.images {
		for _, layer := range layers {
			_, there := f.layers[layer]
			if _, removed := want.removed[layer]; !there && !removed {
				diffs = append(diffs, fmt.Sprintf("image %s: layer %s is gone", name, layer))
			}
		}
	}
	diffs = append(diffs, missing("snapshot", f.snapshots, want.snapshots)...)
	diffs = append(diffs, missing("snapshot that should not be there", want.snapshots, f.snapshots)...)
	for key, w := range want.snapshots {
		if info, ok := f.snapshots[key]; ok {
			for _, d := range f.diffSnapshot(t, info, w) {
				diffs = append(diffs, "snapshot "+key+": "+d)
			}
		}
	}
	return diffs
}

// missing names wanted things that do not exist.
func missing[F, W any](what string, found map[string]F, want map[string]W) (diffs []string) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, ok := found[name]; !ok {
			diffs = append(diffs, what+": "+name)
		}
	}
	return diffs
}

func (f found) diffVolume(t *testing.T, v cowcommon.Volume, want keptVolume) (diffs []string) {
	t.Helper()
	if _, ok := f.layers[want.parent]; !ok {
		want.parent = ""
	}
	if v.Parent != want.parent || v.Sealed != want.sealed || f.h.s.limits() && v.Limit.Bytes != want.limit {
		diffs = append(diffs, fmt.Sprintf("parent %q, sealed %v, limit %d, and not %q, %v, %d", v.Parent, v.Sealed, v.Limit.Bytes, want.parent, want.sealed, want.limit))
	}
	if want.files != nil {
		diffs = append(diffs, f.h.read(t, f.h.d.Backend(), v.Name).diff(want.files)...)
	}
	return diffs
}

func (f found) diffSnapshot(t *testing.T, info snapshots.Info, want keptSnapshot) (diffs []string) {
	t.Helper()
	if info.Kind != want.kind || info.Parent != want.parent {
		diffs = append(diffs, fmt.Sprintf("%s of %q, and not %s of %q", info.Kind, info.Parent, want.kind, want.parent))
	}
	volume, ok := f.volumes[info.Name]
	if !ok {
		return diffs
	}
	v, err := f.h.backend.Stat(t.Context(), volume)
	if err != nil {
		return append(diffs, err.Error())
	}
	if v.Sealed != (info.Kind == snapshots.KindCommitted) || f.h.s.limits() && v.Limit.Bytes != want.limit {
		diffs = append(diffs, fmt.Sprintf("%s, sealed %v, limit %d and not %d", info.Kind, v.Sealed, v.Limit.Bytes, want.limit))
	}
	if want.files != nil {
		diffs = append(diffs, f.h.read(t, f.h.backend, volume).diff(want.files)...)
	}
	return diffs
}

// read returns the content of a volume.
func (h *host) read(t *testing.T, b cowcommon.Backend, name string) tree {
	t.Helper()
	dir, err := b.Mount(t.Context(), name, "")
	require.NoError(t, err)
	files, err := readTree(dir)
	assert.NoError(t, errors.Join(err, b.Unmount(t.Context(), name)))
	return files
}

// assertNothingElse asserts that of Cowshed there is nothing but the volumes that it lists, and that each of those for
// snapshots is a snapshot's.
func (f found) assertNothingElse(t *testing.T) {
	t.Helper()
	volumes := volumesByName(t, f.h.backend)
	of := map[string][]string{
		layersRoot:     slices.Sorted(maps.Keys(f.layers)),
		containersRoot: slices.Sorted(maps.Keys(volumes)),
	}
	needed := slices.DeleteFunc(slices.Clone(of[containersRoot]), func(name string) bool {
		// A snapshot whose commit was interrupted shares the root of its former volume, which is removed after it.
		return f.h.s.shared && !slices.Contains(slices.Collect(maps.Values(f.volumes)), name) &&
			errdefs.IsFailedPrecondition(f.h.backend.Remove(t.Context(), name))
	})
	assert.ElementsMatch(t, slices.Collect(maps.Values(f.volumes)), needed, "volumes of snapshots")
	var want []string
	for root, ids := range of {
		dir := filepath.Join(f.h.mnt, root)
		if f.h.s.shared {
			assertNoSharedLeft(t, filepath.Join(dir, f.h.s.driver), ids)
		}
		if f.h.s.driver != "btrfs" {
			assertNothingLeftOnZFS(t, dir, ids)
			continue
		}
		assertEmpty(t, filepath.Join(dir, "btrfs"))
		want = append(want, root+"/btrfs")
		for _, id := range ids {
			want = append(want, root+"/btrfs/subvolumes/"+id)
		}
	}
	if f.h.s.driver == "btrfs" {
		there := slices.DeleteFunc(testfs.Subvolumes(t, f.h.mnt), func(path string) bool {
			return filepath.Base(path) == innerVolume
		})
		assert.ElementsMatch(t, want, there)
	}
}
