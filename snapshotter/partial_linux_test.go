package snapshotter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// applyWork is the work of applyUntilKilled: a layer is applied to the snapshot "whole", and then a part of it to "part".
type applyWork struct {
	Mnt, Blobs string
	Layer      ocispec.Descriptor
	Unordered  bool
}

func applyUntilKilled(work string) error {
	ctx := context.Background()
	var w applyWork
	if err := json.Unmarshal([]byte(work), &w); err != nil {
		return err
	}
	store, err := contentstore.Open(w.Blobs)
	if err != nil {
		return err
	}
	s, err := openAt(ctx, w.Mnt)
	if err != nil {
		return err
	}
	if w.Unordered {
		s.partial.ordered = false
	}
	for key, reads := range map[string]content.Store{
		"whole": store,
		"part":  hookedStore{store, late(func() { fmt.Println("a part is there"); select {} })},
	} {
		mounts, err := s.Mounts(ctx, key)
		if err != nil {
			return err
		}
		go func() {
			_, err := NewDiffer(s, reads).Apply(ctx, w.Layer, mounts)
			fmt.Println(key, err)
		}()
	}
	select {}
}

// TestApplyKilled kills a process in the middle of an Apply. The snapshot cannot be committed then, nor be applied to. That of an
// Apply that had returned can.
func TestApplyKilled(t *testing.T) {
	for _, unordered := range []bool{false, true} {
		t.Run(fmt.Sprintf("unordered %t", unordered), func(t *testing.T) { testApplyKilled(t, unordered) })
	}
}

func testApplyKilled(t *testing.T, unordered bool) {
	h := newDifferHost(t, Options{})
	ctx := t.Context()
	h.image("image")
	layer := wideLayer(t)
	work := applyWork{Mnt: h.mnt, Blobs: h.blobs, Layer: h.put(ocispec.MediaTypeImageLayer, layer), Unordered: unordered}
	for _, key := range []string{"whole", "part", "untouched"} {
		h.prepare(key, "image")
	}
	part := h.dir("part")
	require.NoError(t, h.Close())
	text, err := json.Marshal(work)
	require.NoError(t, err)
	killAfter(t, applyEnv+"="+string(text), 2, func() {
		assert.Eventually(t, func() bool { return exists(filepath.Join(part, "dir/5")) }, testfs.Patience, 10*time.Millisecond)
	})
	require.NoFileExists(t, filepath.Join(part, "dir/99"))

	for range 2 {
		require.NoError(t, h.open())
		require.ErrorIs(t, h.Commit(ctx, "done", "part"), errdefs.ErrFailedPrecondition)
		_, err := NewDiffer(h.Snapshotter, h.store).Apply(ctx, work.Layer, h.mounts("part"))
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.NoError(t, h.Close())
	}
	assert.Contains(t, h.log.String(), "key=part")
	require.NoError(t, h.open())
	assert.Equal(t, []string{h.volume("part")}, h.partials())
	for _, key := range []string{"whole", "untouched"} {
		h.commit(key+"-done", key)
	}
	assert.FileExists(t, filepath.Join(h.dir("whole-done"), "dir/99"))
	require.NoError(t, h.Remove(ctx, "part"))
	require.NoError(t, h.Cleanup(ctx))
	assert.Len(t, h.volumes(), 3)
	assert.Empty(t, h.partials())
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// partials lists the volumes that are marked as partial on disk.
func (h *host) partials() []string {
	h.t.Helper()
	volumes, err := h.partial.all()
	require.NoError(h.t, err)
	return volumes
}

// markBackend calls a function before each Keep and Sync.
type markBackend struct {
	cowcommon.Backend
	before func(call string)
}

func (b *markBackend) Unwrap() cowcommon.Backend { return b.Backend }

func (b *markBackend) Keep(ctx context.Context, name string) (cowcommon.Kept, error) {
	b.before("keep")
	return cowcommon.Keep(ctx, b.Backend, name)
}

func (b *markBackend) Sync(ctx context.Context, name string) error {
	b.before("sync")
	return b.Backend.Sync(ctx, name)
}

// TestPartialMark: the mark of a volume is there before its former state is kept, which makes the mark durable. It
// goes after the volume is written out, which happens once. So a power cut leaves no part of a layer without its mark.
func TestPartialMark(t *testing.T) {
	var hook *markBackend
	h := newDifferHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := onBtrfs()(t)
		return mnt, func(home string) (cowcommon.Backend, error) {
			b, err := open(home)
			hook = &markBackend{Backend: b}
			return hook, err
		}
	}, Options{})
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	require.True(t, h.partial.ordered, "the root is on the filesystem of the volumes")
	for _, ordered := range []bool{true, false} {
		h.partial.ordered = ordered
		key := fmt.Sprint("ordered ", ordered)
		mounts := h.prepare(key, "")
		var marked []string
		hook.before = func(call string) { marked = append(marked, fmt.Sprint(call, " ", len(h.partials()) > 0)) }
		_, err := h.differ.Apply(t.Context(), good, mounts)
		require.NoError(t, err)
		assert.Equal(t, []string{"keep true", "sync true"}, marked, key)
		assert.Empty(t, h.partials(), key)
	}
}

// TestPartialElsewhere: on another filesystem than that of the volumes, changes do not become durable in order.
func TestPartialElsewhere(t *testing.T) {
	h := newHost(t, Options{})
	other := testfs.Btrfs(t)
	p, err := openPartials(other, h.backend)
	require.NoError(t, err)
	assert.False(t, p.ordered)
	require.NoError(t, p.add("volume"))
	require.NoError(t, p.add("volume"))
	all, err := p.all()
	require.NoError(t, err)
	assert.Equal(t, []string{"volume"}, all)
	require.NoError(t, p.forget("volume"))
	require.NoError(t, p.forget("volume"))
}

// TestPartialStale: marks of volumes that are gone, or that were committed, go with the next start.
func TestPartialStale(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	require.NoError(t, h.partial.add("s-gone"))
	require.NoError(t, h.partial.add(h.volume("image")))
	require.NoError(t, h.restart(nil))
	assert.Empty(t, h.partials())
	h.prepare("active", "image")
	h.commit("child", "active")
}

// TestApplyNotKept: a volume whose former state cannot be kept holds a part of a layer when an Apply has failed, and is not
// committed. A blob with another digest does not get so far.
func TestApplyNotKept(t *testing.T) {
	h := newDifferHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := onBtrfs()(t)
		return mnt, func(home string) (cowcommon.Backend, error) {
			b, err := open(home)
			return &notKeeping{b}, err
		}
	}, Options{})
	ctx := t.Context()
	good := h.put(ocispec.MediaTypeImageLayer, wideLayer(t))
	mounts := h.prepare("active", "")
	_, err := NewDiffer(h.Snapshotter, damagingStore{h.store, good.Digest}).Apply(ctx, good, mounts)
	require.ErrorContains(t, err, "another digest")
	assert.Empty(t, h.partials())
	malformed := h.put(ocispec.MediaTypeImageLayer, bytes.Repeat([]byte("no tar"), 1000))
	_, err = h.differ.Apply(ctx, malformed, mounts)
	require.Error(t, err)
	for range 2 {
		require.ErrorIs(t, h.Commit(ctx, "done", "active"), errdefs.ErrFailedPrecondition)
		require.NoError(t, h.restart(nil))
	}
}

// notKeeping is a Backend that cannot keep a former state.
type notKeeping struct{ cowcommon.Backend }

func (b *notKeeping) Unwrap() cowcommon.Backend { return b.Backend }

func (b *notKeeping) Keep(context.Context, string) (cowcommon.Kept, error) {
	return nil, errdefs.ErrNotImplemented
}
