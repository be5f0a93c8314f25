package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
)

// wideLayer is a layer of many files, which also replaces and removes files of h.image.
func wideLayer(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	noise, source := make([]byte, 64<<10), rand.NewChaCha8([32]byte{})
	require.NoError(t, w.WriteHeader(&tar.Header{Name: ".wh.file", Mode: 0o644}))
	for i := range 100 {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir/%d", i), Mode: 0o644, Size: int64(len(noise))}))
		_, _ = source.Read(noise) // so that the compressed data is as large
		_, err := w.Write(noise)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// hookedStore calls a function before each read of a blob.
type hookedStore struct {
	content.Store
	before func(off int64) error
}

func (s hookedStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	return hookedReader{ra, s.before}, err
}

type hookedReader struct {
	content.ReaderAt
	before func(off int64) error
}

func (r hookedReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.before(off); err != nil {
		return 0, err
	}
	return r.ReaderAt.ReadAt(p, off)
}

// late calls f once, when a part of the blob has been read.
func late(f func()) func(off int64) error {
	done := false
	return func(off int64) error {
		if off >= 4*mib && !done {
			done = true
			f()
		}
		return nil
	}
}

// TestApplyTakenBack: of a layer that turns out to be a wrong one when a part of it has been extracted, nothing is left.
// The snapshot can be used as before, by the mounts that it had before.
func TestApplyTakenBack(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			for _, parent := range []string{"", "image"} {
				testApplyTakenBack(t, onBtrfs(mode.opts...), parent, layertar.Plain, layertar.Gzip, layertar.Zstd)
			}
		})
	}
}

func testApplyTakenBack(t *testing.T, fs filesystem, parent string, formats ...layertar.Format) {
	h := newDifferHostOn(t, fs, Options{DefaultLimit: quota.Limit{Bytes: 64 * mib}})
	ctx := t.Context()
	h.image("image")
	layer := wideLayer(t)
	for _, format := range formats {
		good := h.put(format.MediaType(), compressed(t, layer, format))
		for name, wrong := range map[string]func(ctx context.Context, stop func()) content.Store{
			"damaged":   func(context.Context, func()) content.Store { return damagingStore{h.store, good.Digest} },
			"cut off":   func(context.Context, func()) content.Store { return hookedStore{h.store, unread} },
			"cancelled": func(_ context.Context, stop func()) content.Store { return hookedStore{h.store, late(stop)} },
		} {
			t.Run(fmt.Sprintf("%s %v on %q", name, format, parent), func(t *testing.T) {
				mounts := h.prepare("active", parent)
				h.prepare("same", parent)
				before := h.state()
				limit := h.limit("active")
				cancelled, stop := context.WithCancel(ctx)
				defer stop()
				_, err := NewDiffer(h.Snapshotter, wrong(cancelled, stop)).Apply(cancelled, good, mounts)
				switch name {
				case "damaged":
					require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
					require.ErrorContains(t, err, "another digest")
				case "cut off":
					require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				default:
					require.ErrorIs(t, err, context.Canceled)
				}
				assert.Equal(t, before, h.state())
				assert.Equal(t, limit, h.limit("active"))
				assert.Equal(t, mounts, h.mounts("active"))
				h.assertSameTree("active", "same", treecmp.Options{})

				_, err = h.differ.Apply(ctx, good, mounts)
				require.NoError(t, err)
				assert.Len(t, h.content("active", "dir/99"), 64<<10)
				h.commit("done", "active")
				require.NoError(t, h.Remove(ctx, "done"))
				require.NoError(t, h.Remove(ctx, "same"))
				require.NoError(t, h.Cleanup(ctx))
			})
		}
	}
}

// unread fails where a part of the blob has been read.
func unread(off int64) error {
	if off >= 4*mib {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// limit is the limit of a snapshot's volume.
func (h *host) limit(key string) quota.Limit {
	h.t.Helper()
	v, err := h.backend.Stat(h.t.Context(), h.volume(key))
	require.NoError(h.t, err)
	return v.Limit
}

// TestApplyToTouched: earlier writes to a snapshot stay, and no part of a wrong layer is added to them.
func TestApplyToTouched(t *testing.T) {
	h := newDifferHost(t, Options{})
	h.image("image")
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	wrong := NewDiffer(h.Snapshotter, damagingStore{h.store, good.Digest})
	for key, parent := range map[string]string{"alone": "", "child": "image"} {
		mounts := h.prepare(key, parent)
		h.write(key, "mine", []byte("mine"))
		_, err := wrong.Apply(t.Context(), good, mounts)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		assert.Equal(t, "mine", h.content(key, "mine"))
		assert.NoDirExists(t, filepath.Join(h.dir(key), "dir"))
		require.NoError(t, os.MkdirAll(filepath.Join(h.dir(key), "dir"), 0o700)) // not on the disk yet
		_, err = wrong.Apply(t.Context(), good, mounts)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		assert.DirExists(t, filepath.Join(h.dir(key), "dir"))
		_, err = h.differ.Apply(t.Context(), good, mounts)
		require.NoError(t, err)
		assert.Equal(t, "mine", h.content(key, "mine"))
		assert.NoFileExists(t, filepath.Join(h.dir(key), "file"))
	}
}

// TestApplyToRemoved: a snapshot that is removed while a layer is applied to it, as by a client whose connection was cut,
// leaves no volume.
func TestApplyToRemoved(t *testing.T) {
	h := newDifferHost(t, Options{})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	h.image("image")
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	mounts := h.prepare("active", "image")
	_, err := NewDiffer(h.Snapshotter, hookedStore{h.store, late(func() {
		stop()
		require.NoError(t, h.Remove(t.Context(), "active"))
		require.NoError(t, h.Cleanup(t.Context()))
	})}).Apply(ctx, good, mounts)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Len(t, h.volumes(), 1, "the image")
	require.NoError(t, h.crash())
	assert.Len(t, h.volumes(), 1)
	assert.Empty(t, h.Lost())
}

// TestCommitWaits: a commit has a whole layer, or none of it.
func TestCommitWaits(t *testing.T) {
	h := newDifferHost(t, Options{})
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	for _, c := range []struct {
		name  string
		store content.Store
		files int
	}{{"good", h.store, 100}, {"wrong", damagingStore{h.store, good.Digest}, 0}} {
		mounts := h.prepare("active", "")
		committed := make(chan error, 1)
		commit := func() { committed <- h.Commit(t.Context(), c.name, "active") }
		begun := false
		_, err := NewDiffer(h.Snapshotter, hookedStore{c.store, late(func() {
			begun = true
			go commit()
			select {
			case err := <-committed:
				assert.Fail(t, "committed half-way", "%v", err)
				committed <- err
			case <-time.After(100 * time.Millisecond):
			}
		})}).Apply(t.Context(), good, mounts)
		assert.Equal(t, c.name == "good", err == nil, "%v", err)
		require.True(t, begun)
		require.NoError(t, testfs.Receive(t, committed))
		files, err := filepath.Glob(filepath.Join(h.dir(c.name), "dir", "*"))
		require.NoError(t, err)
		assert.Len(t, files, c.files)
	}
}

// TestApplyNotTakenBack: a layer that cannot be taken back, since somebody has the volume mounted, is not committed.
func TestApplyNotTakenBack(t *testing.T) {
	h := newDifferHost(t, Options{})
	ctx := t.Context()
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	mounts := h.prepare("active", "")
	wrong := NewDiffer(h.Snapshotter, damagingStore{h.store, good.Digest})
	_, unmount := h.mountAt(mounts)
	_, err := wrong.Apply(ctx, good, mounts)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "take back")
	for range 2 {
		require.ErrorIs(t, h.Commit(ctx, "done", "active"), errdefs.ErrFailedPrecondition)
		_, err = h.differ.Apply(ctx, good, mounts)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		unmount()
	}
	require.NoError(t, h.Remove(ctx, "active"))
	require.NoError(t, h.Cleanup(ctx))
	assert.Empty(t, h.volumes())
}

// TestTakeBackFaults lets each call of the backend fail while a layer is applied and taken back, or the process end
// with it. No part of the layer can be committed, by that process or the next, and no volume of a removed snapshot is left.
func TestTakeBackFaults(t *testing.T) {
	for _, crash := range []bool{false, true} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("crash %t, after %t", crash, after), func(t *testing.T) { testTakeBackFaults(t, crash, after) })
		}
	}
}

func testTakeBackFaults(t *testing.T, crash, after bool) {
	var backend *faultyBackend
	h := newDifferHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := onBtrfs(testfs.WithSimpleQuota())(t)
		return mnt, func(home string) (cowcommon.Backend, error) {
			b, err := open(home)
			backend = &faultyBackend{Backend: b}
			backend.disarm()
			return backend, err
		}
	}, Options{})
	ctx := t.Context()
	h.image("image")
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	for n, came := 0, true; came; n++ {
		require.Less(t, n, 20)
		mounts := h.prepare("active", "image")
		h.prepare("same", "image")
		backend.arm(n, after)
		_, err := NewDiffer(h.Snapshotter, damagingStore{h.store, good.Digest}).Apply(ctx, good, mounts)
		require.Error(t, err)
		came = backend.disarm()
		if crash {
			require.NoError(t, h.crash())
		}
		if err := h.Commit(ctx, "done", "active"); err == nil {
			assert.NoDirExists(t, filepath.Join(h.dir("done"), "dir"), "call %d", n)
			assert.FileExists(t, filepath.Join(h.dir("done"), "file"), "call %d", n)
			h.assertSameTree("done", "same", treecmp.Options{})
			require.NoError(t, h.Remove(ctx, "done"))
		} else {
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "call %d", n)
			require.NoError(t, h.Remove(ctx, "active"), "call %d", n)
		}
		require.NoError(t, h.Remove(ctx, "same"))
		require.NoError(t, h.Cleanup(ctx))
		assert.Len(t, h.volumes(), 1, "call %d", n)
		assert.Empty(t, h.Lost(), "call %d", n)
	}
}

// stoppingBackend calls stop when a layer has been extracted.
type stoppingBackend struct {
	cowcommon.Backend
	stop func()
}

func (b *stoppingBackend) Unwrap() cowcommon.Backend { return b.Backend }

func (b *stoppingBackend) Sync(ctx context.Context, name string) error {
	b.stop()
	return b.Backend.Sync(ctx, name)
}

// TestApplyCancelledAtTheEnd: a request that is cancelled when all has been extracted has failed.
func TestApplyCancelledAtTheEnd(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	h := newDifferHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := onBtrfs()(t)
		return mnt, func(home string) (cowcommon.Backend, error) {
			b, err := open(home)
			return &stoppingBackend{b, stop}, err
		}
	}, Options{})
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	applied, err := h.differ.Apply(ctx, good, h.prepare("active", ""))
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, applied)
}

// TestApplyMemory: in the middle of a layer, the memory in use is bounded.
func TestApplyMemory(t *testing.T) {
	const most = 32 * mib
	h := newDifferHost(t, Options{})
	layer := layerOf(t, 64*mib)
	_, err := rand.NewChaCha8([32]byte{}).Read(layer[512 : 64*mib])
	require.NoError(t, err)
	inUse := func() int64 {
		var stats runtime.MemStats
		for range 2 { // pooled memory goes with the second
			runtime.GC()
		}
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	for _, format := range []layertar.Format{layertar.Plain, layertar.Gzip, layertar.Zstd} {
		desc := h.put(format.MediaType(), compressed(t, layer, format))
		mounts := h.prepare(format.String(), "")
		before, during := inUse(), int64(0)
		_, err := NewDiffer(h.Snapshotter, hookedStore{h.store, func(off int64) error {
			if off >= 32*mib && during == 0 {
				during = inUse()
			}
			return nil
		}}).Apply(t.Context(), desc, mounts)
		require.NoError(t, err)
		require.Positive(t, during)
		t.Logf("%v: %d KiB", format, (during-before)>>10)
		assert.Less(t, during-before, int64(most), format)
	}
}
