package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/testfs"
)

// sharingBackend makes all clones with shared roots, except for those of volumes that somebody writes to.
type sharingBackend struct{ cowcommon.Backend }

func (b sharingBackend) Unwrap() cowcommon.Backend { return b.Backend }

func (b sharingBackend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	shared := opts
	shared.RootStyle = cowcommon.SharedRoot
	err := b.Backend.Clone(ctx, name, source, shared)
	if errors.Is(err, fault.ErrInUse) {
		return b.Backend.Clone(ctx, name, source, opts)
	}
	return err
}

func sharing(fs filesystem) filesystem {
	return func(t *testing.T) (string, openFunc) {
		t.Helper()
		mnt, open := fs(t)
		return mnt, func(home string) (cowcommon.Backend, error) {
			backend, err := open(home)
			if err != nil {
				return nil, err
			}
			return sharingBackend{backend}, nil
		}
	}
}

// TestShared runs tests of snapshots with shared roots.
func TestShared(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, fs filesystem){
		"limits":             testLimits,
		"view":               testView,
		"prepare":            testPrepareIsWritable,
		"remove and cleanup": func(t *testing.T, fs filesystem) { testRemoveAndCleanup(t, fs) },
		"commit":             testCommitSeals,
		"commit mounted":     func(t *testing.T, fs filesystem) { testCommitMounted(t, fs) },
		"interrupted commit": func(t *testing.T, fs filesystem) { testRecoverInterruptedCommit(t, fs) },
		"resolve":            testResolveChangedOptions,
		"compare":            testCompareAgreesWithContainerd,
		"create diff":        testCreateDiff,
		"apply taken back":   func(t *testing.T, fs filesystem) { testApplyTakenBack(t, fs, "image", layertar.Gzip) },
	} {
		t.Run(name, func(t *testing.T) { test(t, sharing(onBtrfs(testfs.WithSimpleQuota()))) })
	}
}

// TestSharedInit: Docker's layer between an image and a container keeps its root style when it is committed. So the
// container is an overlay over the image. Its changes are those since that layer.
func TestSharedInit(t *testing.T) {
	h := newHost(t, Options{RootStyle: cowcommon.SharedRoot})
	h.image("image")
	id := strings.Repeat("1a", 32)
	h.prepare("moby/7/"+id+"-init-key", "image")
	h.write("moby/7/"+id+"-init-key", "hosts", nil)
	h.commit(id+"-init", "moby/7/"+id+"-init-key")
	v, err := h.backend.Stat(t.Context(), h.volume(id+"-init"))
	require.NoError(t, err)
	assert.True(t, v.Sealed)
	assert.Equal(t, cowcommon.SharedRoot, v.RootStyle)

	mounts := h.prepare(id, id+"-init")
	assert.Contains(t, mounts[0].Options, "lowerdir="+h.dir("image"))
	dir, unmount := h.mountAt(mounts)
	assert.FileExists(t, filepath.Join(dir, "hosts"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
	unmount()
	comparer := cowcommon.NewComparer(h.backend, user.IdentityMapping{}, slog.New(slog.DiscardHandler))
	c, err := comparer.Compare(t.Context(), h.volume(id), h.volume(id+"-init"), cowcommon.Auto)
	require.NoError(t, err)
	assert.True(t, c.Native, c.Reason)
	assert.Equal(t, []archive.Change{{Path: "/new", Kind: archive.ChangeAdd}}, c.Changes)
	require.NoError(t, c.Close())
	viewed, unmount := h.mountAt(h.view("view", id+"-init"))
	assert.FileExists(t, filepath.Join(viewed, "hosts"))
	assert.ErrorIs(t, os.WriteFile(filepath.Join(viewed, "hosts"), nil, 0o644), unix.EROFS)
	unmount()

	for _, key := range []string{"view", id, id + "-init", "image"} {
		require.NoError(t, h.Remove(t.Context(), key))
	}
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Empty(t, h.volumes())
}

// TestSharedMounts: the mounts of a container with a shared root are an overlay over the image, whatever their access mode.
// A commit of a container that runs is a layer of this moment.
func TestSharedMounts(t *testing.T) {
	h := newHost(t, Options{RootStyle: cowcommon.SharedRoot})
	h.image("image")
	mounts := h.prepare("web", "image")
	require.Len(t, mounts, 1)
	assert.Equal(t, "overlay", mounts[0].Type)
	assert.Contains(t, mounts[0].Options, "rw")
	assert.Contains(t, mounts[0].Options, "lowerdir="+h.dir("image"))
	again, err := h.Mounts(t.Context(), "web")
	require.NoError(t, err)
	assert.Equal(t, mounts, again)

	dir, unmount := h.mountAt(mounts)
	require.NoError(t, os.Remove(filepath.Join(dir, "file")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o644))
	h.commit("running", "web")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "later"), nil, 0o644))
	unmount()

	viewed, unmount := h.mountAt(h.view("view", "running"))
	entries, err := os.ReadDir(viewed)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "new", entries[0].Name())
	assert.ErrorIs(t, os.WriteFile(filepath.Join(viewed, "file"), nil, 0o644), unix.EROFS)
	unmount()

	h.prepare("next", "running")
	h.write("next", "file", []byte("again"))
	h.commit("stopped", "next")
	assert.Equal(t, "again", h.content("stopped", "file"))
	assert.Equal(t, "new", h.content("stopped", "new"))
	v, err := h.backend.Stat(t.Context(), h.volume("stopped"))
	require.NoError(t, err)
	assert.True(t, v.Sealed)
	assert.Equal(t, cowcommon.SnapshotRoot, v.RootStyle)
	for _, key := range []string{"view", "stopped", "running", "image"} {
		require.NoError(t, h.Remove(t.Context(), key))
	}
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Empty(t, h.volumes())
}

// TestUsageOfShared: without quotas, the usage of an active snapshot with a shared root is the size of its files apart, and nothing
// is compared.
func TestUsageOfShared(t *testing.T) {
	for _, inodes := range []bool{false, true} {
		h := newHost(t, Options{RootStyle: cowcommon.SharedRoot, CountInodes: inodes})
		h.image("image")
		dir, unmount := h.mountAt(h.prepare(strings.Repeat("1a", 32), "image"))
		require.NoError(t, fill(filepath.Join(dir, "new"), 4*mib))
		file, err := os.OpenFile(filepath.Join(dir, "file"), os.O_WRONLY, 0) // copied up, and equal
		require.NoError(t, err)
		require.NoError(t, file.Close())
		size, err := os.Stat(filepath.Join(dir, "file"))
		require.NoError(t, err)
		usage, err := h.Usage(t.Context(), strings.Repeat("1a", 32))
		require.NoError(t, err)
		if inodes {
			assert.EqualValues(t, 4*mib, usage.Size)
			assert.EqualValues(t, 1, usage.Inodes)
		} else {
			assert.EqualValues(t, 4*mib+size.Size(), usage.Size)
			assert.Zero(t, usage.Inodes)
		}
		unmount()
	}
}
