package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/zfs"
)

const mib = 1 << 20

// filesystem makes a filesystem for one test, mounted on mnt. open opens a backend whose home is mnt/home.
type filesystem func(t *testing.T) (mnt string, open openFunc)

type openFunc func(home string) (cowcommon.Backend, error)

func onBtrfs(opts ...testfs.BtrfsOption) filesystem {
	return func(t *testing.T) (string, openFunc) {
		t.Helper()
		mnt := testfs.Btrfs(t, opts...)
		return mnt, func(home string) (cowcommon.Backend, error) {
			backend, err := btrfs.Open(t.Context(), filepath.Join(mnt, home), btrfs.Options{})
			if err != nil {
				return nil, err
			}
			return withSharedRoots(t, backend, filepath.Join(mnt, home))
		}
	}
}

func onZFS(t *testing.T) (string, openFunc) {
	t.Helper()
	dataset, mnt := testfs.ZFS(t)
	return onDataset(t, dataset, mnt)
}

func onSmallZFS(size int64, by testfs.Bound) filesystem {
	return func(t *testing.T) (string, openFunc) {
		t.Helper()
		dataset, mnt := testfs.SmallZFS(t, size, by)
		return onDataset(t, dataset, mnt)
	}
}

// onDataset makes homes below a dataset.
func onDataset(t *testing.T, dataset, mnt string) (string, openFunc) {
	t.Helper()
	return mnt, func(home string) (cowcommon.Backend, error) {
		if out, err := exec.Command("zfs", "create", "-p", dataset+"/"+home).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("zfs create: %w: %s", err, out)
		}
		backend, err := zfs.Open(t.Context(), filepath.Join(mnt, home), dataset+"/"+home, zfs.Options{})
		if err != nil {
			return nil, err
		}
		return withSharedRoots(t, backend, filepath.Join(mnt, home))
	}
}

// withSharedRoots wraps a Backend as cowdriver.Open does where shared roots are on.
func withSharedRoots(t *testing.T, backend cowcommon.Backend, home string) (cowcommon.Backend, error) {
	t.Helper()
	shared, err := sharedroot.New(t.Context(), backend, home, sharedroot.Options{})
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	return shared, nil
}

// host is a snapshotter and the means to open it again.
type host struct {
	*Snapshotter
	t         *testing.T
	mnt       string
	openOnMnt openFunc
	opts      Options
	log       *bytes.Buffer
}

// newHost makes a snapshotter on a btrfs of its own.
func newHost(t *testing.T, opts Options, fsOpts ...testfs.BtrfsOption) *host {
	t.Helper()
	return newHostOn(t, onBtrfs(fsOpts...), opts)
}

func newHostOn(t *testing.T, fs filesystem, opts Options) *host {
	t.Helper()
	testfs.CheckLeaks(t)
	h := &host{t: t, opts: opts, log: new(bytes.Buffer)}
	h.mnt, h.openOnMnt = fs(t)
	h.opts.Logger = slog.New(slog.NewTextHandler(h.log, nil))
	require.NoError(t, h.open())
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

func (h *host) openBackend() cowcommon.Backend {
	h.t.Helper()
	backend, err := h.openOnMnt("volumes")
	require.NoError(h.t, err)
	return backend
}

func (h *host) open() error {
	h.t.Helper()
	backend := h.openBackend()
	s, err := New(context.WithoutCancel(h.t.Context()), filepath.Join(h.mnt, "snapshotter"), backend, h.opts)
	if err != nil {
		require.NoError(h.t, backend.Close())
		return err
	}
	h.Snapshotter = s
	return nil
}

// restart closes the snapshotter, does something to its backend, and opens it again.
func (h *host) restart(meanwhile func(b cowcommon.Backend)) error {
	h.t.Helper()
	require.NoError(h.t, h.Close())
	if meanwhile != nil {
		backend := h.openBackend()
		meanwhile(backend)
		require.NoError(h.t, backend.Close())
	}
	return h.open()
}

// crash opens the snapshotter again as after the end of its process: nothing that it would do when it is closed is done.
func (h *host) crash() error {
	h.t.Helper()
	require.NoError(h.t, h.meta.Close())
	require.NoError(h.t, h.backend.Close())
	return h.open()
}

// ledger lists the volumes of a ledger.
func (h *host) ledger(l ledger) []string {
	h.t.Helper()
	var volumes []string
	require.NoError(h.t, h.look(h.t.Context(), func(_ context.Context, tx *bolt.Tx) error {
		volumes = slices.Sorted(maps.Keys(l.all(tx)))
		return nil
	}))
	return volumes
}

// in calls do with the directory of a snapshot's tree, which is reachable as long as do runs.
func (h *host) in(key string, do func(dir string)) {
	h.t.Helper()
	volume := h.volume(key)
	dir, err := h.backend.Mount(h.t.Context(), volume, "")
	require.NoError(h.t, err)
	defer func() { require.NoError(h.t, h.backend.Unmount(h.t.Context(), volume)) }()
	do(dir)
}

// dir is the directory of a snapshot's tree on btrfs, where it is always reachable.
func (h *host) dir(key string) string {
	h.t.Helper()
	return h.path(h.volume(key))
}

func (h *host) path(volume string) string {
	return filepath.Join(h.mnt, "volumes", "subvolumes", volume)
}

// volume is the name of the volume that holds a snapshot's tree.
func (h *host) volume(key string) string {
	h.t.Helper()
	volume, err := h.Volume(h.t.Context(), key)
	require.NoError(h.t, err)
	return volume
}

func (h *host) write(key, name string, data []byte) {
	h.t.Helper()
	h.in(key, func(dir string) { require.NoError(h.t, os.WriteFile(filepath.Join(dir, name), data, 0o644)) })
}

func (h *host) content(key, name string) string {
	h.t.Helper()
	var data []byte
	h.in(key, func(dir string) {
		var err error
		data, err = os.ReadFile(filepath.Join(dir, name))
		require.NoError(h.t, err)
	})
	return string(data)
}

func (h *host) prepare(key, parent string, opts ...snapshots.Opt) []mount.Mount {
	h.t.Helper()
	mounts, err := h.Prepare(h.t.Context(), key, parent, opts...)
	require.NoError(h.t, err)
	return mounts
}

func (h *host) view(key, parent string) []mount.Mount {
	h.t.Helper()
	mounts, err := h.View(h.t.Context(), key, parent)
	require.NoError(h.t, err)
	return mounts
}

func (h *host) commit(name, key string) {
	h.t.Helper()
	require.NoError(h.t, h.Commit(h.t.Context(), name, key))
}

// image commits a snapshot of that name with one file of one MiB.
func (h *host) image(name string) {
	h.t.Helper()
	h.prepare(name+"-unpack", "")
	h.write(name+"-unpack", "file", bytes.Repeat([]byte("cowshed\n"), mib/8))
	h.commit(name, name+"-unpack")
}

// volumes lists the names of the existing volumes, sorted.
func (h *host) volumes() []string {
	h.t.Helper()
	names := []string{}
	for v, err := range h.backend.Volumes(h.t.Context()) {
		require.NoError(h.t, err)
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return names
}

// state is the complete state: the metadata, and the volumes.
func (h *host) state() any {
	h.t.Helper()
	infos := []snapshots.Info{}
	require.NoError(h.t, h.Walk(h.t.Context(), func(_ context.Context, info snapshots.Info) error {
		infos = append(infos, info)
		return nil
	}))
	return []any{infos, h.volumes()}
}

// keys lists the snapshots, sorted.
func (h *host) keys() []string {
	h.t.Helper()
	keys := []string{}
	require.NoError(h.t, h.Walk(h.t.Context(), func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}))
	return keys
}

// mountAt mounts until the test ends, or until the function that it returns is called.
func (h *host) mountAt(mounts []mount.Mount) (dir string, unmount func()) {
	h.t.Helper()
	dir = h.t.TempDir()
	require.NoError(h.t, mount.All(mounts, dir))
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			require.NoError(h.t, mount.UnmountAll(dir, 0))
		}
	}
	h.t.Cleanup(unmount)
	return dir, unmount
}

func label(name, value string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{name: value})
}
