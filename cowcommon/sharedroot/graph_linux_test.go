package sharedroot_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/graphdriver/graphtest"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestGraph runs the conformance suite of graph drivers, with shared roots for all layers that have a parent.
func TestGraph(t *testing.T) {
	var homes sync.Map // of drivers
	open := func(t testing.TB, home string, idMap user.IdentityMapping) graphdriver.Driver {
		backend := openShared(t, home, sharedroot.Options{})
		d := cowdriver.New("btrfs", allShared{backend}, cowdriver.Options{IDMap: idMap})
		t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
		homes.Store(d, home)
		return d
	}
	graphtest.Run(t, graphtest.Config{
		New: func(t testing.TB) graphdriver.Driver {
			return open(t, filepath.Join(testfs.Btrfs(t, testfs.WithSimpleQuota()), "home"), user.IdentityMapping{})
		},
		NewIDMapped: func(t testing.TB, idMap user.IdentityMapping) graphdriver.Driver {
			return open(t, filepath.Join(testfs.Btrfs(t, testfs.WithSimpleQuota()), "home"), idMap)
		},
		Reopen: func(t testing.TB, d graphdriver.Driver) graphdriver.Driver {
			require.NoError(t, d.Cleanup())
			home, ok := homes.Load(d)
			require.True(t, ok)
			return open(t, home.(string), user.IdentityMapping{})
		},
		Quota:        true,
		SealsParents: true,
		SeesWrites:   true,
		FrozenDiff:   true,
		DiffGetter:   true,
		DiffPath:     true,
		CustomImages: true,
		Overlay:      true,
	})
}

// allShared gives each clone a shared root, whatever its caller asks for, unless somebody writes to the source.
type allShared struct{ cowcommon.Backend }

// Unwrap returns the Backend inside.
func (b allShared) Unwrap() cowcommon.Backend { return b.Backend }

// Clone clones with a shared root if that is possible.
func (b allShared) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	shared := opts
	shared.RootStyle = cowcommon.SharedRoot
	err := b.Backend.Clone(ctx, name, source, shared)
	if errors.Is(err, fault.ErrInUse) {
		return b.Backend.Clone(ctx, name, source, opts)
	}
	return err
}

// openShared opens a home on btrfs, without closing it at the end.
func openShared(t testing.TB, home string, opts sharedroot.Options) cowcommon.Backend {
	t.Helper()
	inner, err := btrfs.Open(t.Context(), home, btrfs.Options{})
	require.NoError(t, err)
	backend, err := sharedroot.New(t.Context(), inner, home, opts)
	require.NoError(t, err)
	return backend
}

// BenchmarkContainer is the life of a container of each style: it is made, mounted, changes three files, and is removed or
// committed. The part "overlay" is an overlay over a sealed volume, with the same directories in an ordinary one. The part
// "usage" measures the three changes while the container runs, without quotas: from the changes apart, or by a comparison.
func BenchmarkContainer(b *testing.B) {
	home := filepath.Join(testfs.Btrfs(b, testfs.WithSimpleQuota()), "home")
	backend := openShared(b, home, sharedroot.Options{})
	b.Cleanup(func() { assert.NoError(b, backend.Close()) })
	require.NoError(b, backend.Create(b.Context(), "image", cowcommon.VolumeOptions{}))
	change := func(dir string) {
		for _, name := range []string{"one", "two", "three"} {
			require.NoError(b, os.WriteFile(filepath.Join(dir, name), []byte(dir), 0o600))
		}
	}
	image, err := backend.Mount(b.Context(), "image", "")
	require.NoError(b, err)
	change(image)
	require.NoError(b, backend.Unmount(b.Context(), "image"))
	require.NoError(b, cowcommon.Seal(b.Context(), backend, "image"))
	n := 0
	for _, style := range []cowcommon.RootStyle{cowcommon.SnapshotRoot, cowcommon.SharedRoot} {
		live := func(b *testing.B, end func(name string) error) {
			b.Helper()
			for b.Loop() {
				n++
				name := fmt.Sprint("c-", n)
				require.NoError(b, backend.Clone(b.Context(), name, "image", cowcommon.VolumeOptions{RootStyle: style}))
				dir, err := backend.Mount(b.Context(), name, "")
				require.NoError(b, err)
				change(dir)
				require.NoError(b, backend.Unmount(b.Context(), name))
				require.NoError(b, end(name))
			}
		}
		b.Run("remove/"+string(style), func(b *testing.B) {
			live(b, func(name string) error { return backend.Remove(b.Context(), name) })
		})
		b.Run("commit/"+string(style), func(b *testing.B) {
			live(b, func(name string) error { return cowcommon.Seal(b.Context(), backend, name) })
		})
	}
	require.NoError(b, backend.Clone(b.Context(), "measured", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}))
	dir, err := backend.Mount(b.Context(), "measured", "")
	require.NoError(b, err)
	change(dir)
	b.Run("usage/apart", func(b *testing.B) {
		for b.Loop() {
			_, err := cowcommon.ChangesSize(b.Context(), backend, "measured", "image")
			require.NoError(b, err)
		}
	})
	b.Run("usage/compared", func(b *testing.B) {
		comparer := cowcommon.NewComparer(backend, user.IdentityMapping{}, slog.New(slog.DiscardHandler))
		for b.Loop() {
			c, err := comparer.Compare(b.Context(), "measured", "image", cowcommon.Auto)
			require.NoError(b, err)
			require.NoError(b, c.Close())
		}
	})
	require.NoError(b, backend.Unmount(b.Context(), "measured"))
	b.Run("remove/overlay", func(b *testing.B) {
		for b.Loop() {
			n++
			root := filepath.Join(home, fmt.Sprint("plain-", n))
			for _, dir := range []string{"", "upper", "work", "merged"} {
				require.NoError(b, os.Mkdir(filepath.Join(root, dir), 0o700))
			}
			options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", image, root, root)
			require.NoError(b, unix.Mount("overlay", root+"/merged", "overlay", 0, options))
			change(root + "/merged")
			require.NoError(b, unix.Unmount(root+"/merged", 0))
			require.NoError(b, os.RemoveAll(root))
		}
	})
}
