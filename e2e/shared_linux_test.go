package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// manifold is a layer with a shared root, and a change of each kind that a fold treats in a way of its own.
const manifold = "manifold"

// manifoldBase is in the layer base too, where containers have shared roots.
var manifoldBase = tree{"dir/": "", "dir/changed": "base", "dir/gone": "base", "opaque/": "", "opaque/gone": "base", "tofile/": "", "tofile/gone": "base", "todir": "base"}

var manifoldTree = tree{"dir/": "", "dir/changed": "new", "dir/new": "new", "opaque/": "", "opaque/new": "new", "tofile": "new", "todir/": "", "todir/new": "new"}

func makeManifold(t *testing.T, d *cowdriver.Driver) {
	t.Helper()
	require.NoError(t, d.CreateReadWrite(manifold, "base", nil))
	dir := get(t, d, manifold)
	for _, gone := range []string{"dir/gone", "opaque", "tofile", "todir"} {
		require.NoError(t, os.RemoveAll(filepath.Join(dir, gone)))
	}
	require.NoError(t, writeTree(dir, manifoldTree))
	require.NoError(t, d.Put(manifold))
	require.NoError(t, d.Backend().Sync(t.Context(), manifold))
}

// manifoldDiffs lists how a layer differs from manifold.
func manifoldDiffs(d *cowdriver.Driver, id string) ([]string, error) {
	dir, err := d.Get(id, "")
	if err != nil {
		return nil, err
	}
	files, err := readTree(dir)
	delete(files, "file") // of base
	return files.diff(manifoldTree), errors.Join(err, d.Put(id))
}

func assertManifold(t *testing.T, d *cowdriver.Driver, id string) {
	t.Helper()
	diffs, err := manifoldDiffs(d, id)
	require.NoError(t, err)
	assert.Empty(t, diffs, id)
}

func styleOf(ctx context.Context, d *cowdriver.Driver, id string) (cowcommon.RootStyle, error) {
	v, err := d.Backend().Stat(ctx, id)
	return v.RootStyle, err
}

func foldManifold(ctx context.Context, d *cowdriver.Driver) error {
	return cowcommon.SetRootStyle(ctx, d.Backend(), manifold, cowcommon.SnapshotRoot)
}

// unfoldManifold gives manifold, which has a root of its own, a shared root again.
func unfoldManifold(ctx context.Context, d *cowdriver.Driver) error {
	return cowcommon.SetRootStyle(ctx, d.Backend(), manifold, cowcommon.SharedRoot)
}

// cloneManifoldInUse mounts manifold, and clones it as cloneManifold does.
func cloneManifoldInUse(ctx context.Context, d *cowdriver.Driver, readWrite bool) error {
	if _, err := d.Get(manifold, ""); err != nil {
		return err
	}
	return errors.Join(cloneManifold(ctx, d, readWrite), d.Put(manifold))
}

// cloneManifold clones manifold. readWrite: the clone has a shared root, else it is folded.
func cloneManifold(ctx context.Context, d *cowdriver.Driver, readWrite bool) error {
	create := d.WithContext(ctx).Create
	if readWrite {
		create = d.WithContext(ctx).CreateReadWrite
	}
	return create("new", manifold, nil)
}

// forkManifold forks manifold.
func forkManifold(ctx context.Context, d *cowdriver.Driver) error {
	return cowcommon.Fork(ctx, d.Backend(), manifold, "new", []string{"renamed"}, cowcommon.VolumeOptions{})
}

// foldChild gives child a root of its own.
func foldChild(ctx context.Context, d *cowdriver.Driver) error {
	return cowcommon.SetRootStyle(ctx, d.Backend(), "child", cowcommon.SnapshotRoot)
}

// assertExchanged asserts that manifold and child have their contents, or each has that of the other.
func assertExchanged(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
	t.Helper()
	ofManifold, ofChild := manifold, "child"
	if diffs, err := manifoldDiffs(d, manifold); len(diffs) > 0 || err != nil {
		ofManifold, ofChild = "child", manifold
	}
	assertManifold(t, d, ofManifold)
	assertContent(t, d, ofChild)
	style, err := styleOf(t.Context(), d, ofManifold)
	require.NoError(t, err)
	assert.Equal(t, cowcommon.SharedRoot, style)
	if acknowledged {
		assert.Equal(t, "child", ofManifold)
		style, err := styleOf(t.Context(), d, ofChild)
		require.NoError(t, err)
		assert.Equal(t, cowcommon.SnapshotRoot, style)
	}
}

// sharedOperations are those that a process with shared roots is killed in, besides operations.
func sharedOperations(s system) []operation {
	cloned := func(style cowcommon.RootStyle) func(*testing.T, *cowdriver.Driver, bool) {
		return func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			assertManifold(t, d, manifold)
			got, err := styleOf(t.Context(), d, "new")
			if !acknowledged && errdefs.IsNotFound(err) {
				return
			}
			require.NoError(t, err)
			assertManifold(t, d, "new")
			if acknowledged {
				assert.Equal(t, style, got)
			}
		}
	}
	operations := []operation{
		{"fold", func(d *cowdriver.Driver) error { return foldManifold(context.Background(), d) }, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			assertManifold(t, d, manifold)
			style, err := styleOf(t.Context(), d, manifold)
			require.NoError(t, err)
			if acknowledged {
				assert.Equal(t, cowcommon.SnapshotRoot, style)
			}
			require.NoError(t, cowcommon.Seal(t.Context(), d.Backend(), manifold))
			assertManifold(t, d, manifold)
		}},
		{"fold and unfold", func(d *cowdriver.Driver) error {
			return errors.Join(foldManifold(context.Background(), d), unfoldManifold(context.Background(), d))
		}, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			assertManifold(t, d, manifold)
			style, err := styleOf(t.Context(), d, manifold)
			require.NoError(t, err)
			if acknowledged {
				assert.Equal(t, cowcommon.SharedRoot, style)
			}
		}},
		{"clone in use", func(d *cowdriver.Driver) error {
			return cloneManifoldInUse(context.Background(), d, true)
		}, cloned(cowcommon.SharedRoot)},
		{"clone in use and fold", func(d *cowdriver.Driver) error {
			return cloneManifoldInUse(context.Background(), d, false)
		}, cloned(cowcommon.SnapshotRoot)},
		{"mount", func(d *cowdriver.Driver) error {
			_, err := manifoldDiffs(d, manifold)
			return err
		}, func(t *testing.T, d *cowdriver.Driver, _ bool) { assertManifold(t, d, manifold) }},
		{"fork in use", func(d *cowdriver.Driver) error {
			if _, err := d.Get(manifold, ""); err != nil {
				return err
			}
			return errors.Join(forkManifold(context.Background(), d), d.Put(manifold))
		}, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			for _, id := range []string{manifold, "new", "renamed"} {
				style, err := styleOf(t.Context(), d, id)
				if id != manifold && !acknowledged && errdefs.IsNotFound(err) {
					continue
				}
				require.NoError(t, err)
				assert.Equal(t, cowcommon.SharedRoot, style)
				assertManifold(t, d, id)
			}
		}},
	}
	if s.driver == "btrfs" { // ZFS exchanges no volumes
		operations = append(operations, operation{"exchange", func(d *cowdriver.Driver) error {
			return errors.Join(foldChild(context.Background(), d), cowcommon.Exchange(context.Background(), d.Backend(), manifold, "child"))
		}, assertExchanged})
	}
	return operations
}

// notesOfGone lists the notes in a home about volumes that are not there.
func notesOfGone(t *testing.T, home string, ids []string) (gone []string) {
	t.Helper()
	notes, err := os.ReadDir(filepath.Join(home, "shared"))
	require.NoError(t, err)
	for _, note := range notes {
		if !slices.Contains(ids, note.Name()) {
			gone = append(gone, note.Name())
		}
	}
	return gone
}

// assertNoSharedLeft asserts that a home, which may be open, has no overlay mounted, and few notes about removed volumes: these
// wait for a common sync.
func assertNoSharedLeft(t *testing.T, home string, ids []string) {
	t.Helper()
	assert.Less(t, len(notesOfGone(t, home, ids)), 64)
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		assert.NotContains(t, line, " "+filepath.Join(home, "roots")+"/", "an overlay is left")
	}
}

// TestKilledShared is TestKilled with shared roots.
func TestKilledShared(t *testing.T) {
	t.Parallel()
	inEachShared(t, func(t *testing.T, s system) {
		for _, op := range operations(s) {
			t.Run(op.name, func(t *testing.T) { killAtEachStep(t, s, op) })
		}
	})
}

// TestKilledAtRandomShared is TestKilledAtRandom with shared roots.
func TestKilledAtRandomShared(t *testing.T) { inEachShared(t, killAtRandom) }

// TestPowerCutShared is TestPowerCut with shared roots.
func TestPowerCutShared(t *testing.T) { inEachShared(t, cutPower) }

// styleStep gives a volume a root style.
func styleStep(name string, style cowcommon.RootStyle) step {
	return step{
		name: fmt.Sprintf("give %s the style %s", name, style), commits: true, after: unchanged,
		run: func(ctx context.Context, h *host) error {
			return cowcommon.SetRootStyle(ctx, h.d.Backend(), name, style)
		},
	}
}

// sharedSteps change the volume one, which has a shared root, clone it and the clone in use, and remove all of them.
func sharedSteps(one, two, three string, remove func(name string) step) []step {
	changed := tree{"etc/": "", "etc/new": random(one, 40<<10), "bin/": "", "bin/few": "changed"}
	unknown := func(k kept) { k.change(one, func(v *keptVolume) { v.files = nil }) }
	write := step{
		name: "write to " + one, commits: true, between: []func(kept){unknown},
		run: func(ctx context.Context, h *host) error {
			err := h.in(ctx, h.d.Backend(), one, func(dir string) error {
				gone := []error{os.RemoveAll(filepath.Join(dir, "etc")), os.RemoveAll(filepath.Join(dir, "bin/tool"))}
				return errors.Join(append(gone, writeTree(dir, changed))...)
			})
			return errors.Join(err, h.d.Backend().Sync(ctx, one))
		},
		after: func(k kept) { k.change(one, func(v *keptVolume) { v.files = changed }) },
	}
	cloneInUse := func(name, source string) step {
		return step{
			name: "clone " + name + " of " + source + " in use", commits: true,
			run: func(ctx context.Context, h *host) error {
				return h.in(ctx, h.d.Backend(), source, func(string) error { return h.d.CreateReadWrite(name, source, nil) })
			},
			after: func(k kept) { k.volumes[name] = keptVolume{parent: source, files: changed} },
		}
	}
	return []step{
		write, cloneInUse(two, one), remove(one),
		cloneInUse(three, two), // its note is durable at once, and a removal before it need not be
		remove(three), styleStep(two, cowcommon.SnapshotRoot), remove(two),
	}
}
