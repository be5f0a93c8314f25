package snapshotter

import (
	"context"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// styledBackend notes the root styles that it is asked for. Volumes with SharedRoot have no MountSpec if unmountable is
// set.
type styledBackend struct {
	cowcommon.Backend
	unmountable bool
	inUse       bool // sources are written to

	mu    sync.Mutex
	asked map[string]cowcommon.RootStyle // by volume
	count int                            // of volumes that are asked for with SharedRoot
}

func (b *styledBackend) Unwrap() cowcommon.Backend { return b.Backend }

func (b *styledBackend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	b.mu.Lock()
	if b.asked == nil {
		b.asked = make(map[string]cowcommon.RootStyle)
	}
	b.asked[name] = opts.RootStyle
	if opts.RootStyle == cowcommon.SharedRoot {
		b.count++
	}
	b.mu.Unlock()
	if b.inUse && opts.RootStyle == cowcommon.SharedRoot {
		return fault.New(fault.ErrInUse, "somebody writes to the source")
	}
	return b.Backend.Clone(ctx, name, source, opts)
}

func (b *styledBackend) MountSpec(ctx context.Context, name string, readOnly bool) (cowcommon.MountSpec, error) {
	if b.unmountable && b.of(name) == cowcommon.SharedRoot {
		return cowcommon.MountSpec{}, fault.New(errdefs.ErrNotImplemented, "its layers have no paths")
	}
	mounter, _ := cowcommon.As[cowcommon.SpecMounter](b.Backend)
	return mounter.MountSpec(ctx, name, readOnly)
}

func (b *styledBackend) CheckMountSpec() error { return nil }

func (b *styledBackend) of(volume string) cowcommon.RootStyle {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[volume]
}

func newStyledHost(t *testing.T, unmountable bool, style cowcommon.RootStyle) (*host, *styledBackend) {
	t.Helper()
	b := &styledBackend{unmountable: unmountable}
	h := newHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := onBtrfs()(t)
		return mnt, func(home string) (_ cowcommon.Backend, err error) {
			b.Backend, err = open(home)
			return b, err
		}
	}, Options{RootStyle: style})
	h.image("image")
	return h, b
}

const (
	unpackKey = "default/1/extract-123-Abc_ sha256:abc"
	buildKey  = "moby/2/zo2wm3h5dsw5v1yoo4iiplkfu"
)

// TestRootStyle: containers have the configured style, others the style of a volume of their own, and a label overrides
// both. The label of an image's manifest has no effect.
func TestRootStyle(t *testing.T) {
	const shared, own = cowcommon.SharedRoot, cowcommon.SnapshotRoot
	for _, c := range []struct {
		name, key  string
		configured cowcommon.RootStyle
		opt        snapshots.Opt
		want       cowcommon.RootStyle
	}{
		{"nothing", "web", "", label("other", "label"), own},
		{"configured", "web", shared, label("other", "label"), shared},
		{"label", "web", "", label(RootStyleLabel, "shared"), shared},
		{"other label", "web", shared, label(RootStyleLabel, "snapshot"), own},
		{"through containerd", "web", "", label(InheritedRootStyleLabel, "shared"), shared},
		{"both labels", "web", "", snapshots.WithLabels(map[string]string{
			InheritedRootStyleLabel: "snapshot", RootStyleLabel: "shared",
		}), shared},
		{"build", buildKey, shared, label("other", "label"), own},
		{"build by label", buildKey, "", label(InheritedRootStyleLabel, "shared"), shared},
		{"unpack", unpackKey, shared, label("other", "label"), own},
		{"unpack by manifest", unpackKey, shared, label(InheritedRootStyleLabel, "shared"), own},
		{"unpack by label", unpackKey, "", label(RootStyleLabel, "shared"), shared},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, b := newStyledHost(t, false, c.configured)
			h.prepare(c.key, "image", c.opt)
			assert.Equal(t, c.want, b.of(h.volume(c.key)))
			info, err := h.Stat(t.Context(), c.key)
			require.NoError(t, err)
			var asked snapshots.Info
			require.NoError(t, c.opt(&asked))
			assert.Equal(t, asked.Labels, info.Labels, "labels are kept")
		})
	}
}

// TestRootStyleOfMappedIDs: an overlay cannot be mounted with mapped ids. A container that names no style gets a volume of
// its own.
func TestRootStyleOfMappedIDs(t *testing.T) {
	h, b := newStyledHost(t, false, cowcommon.SharedRoot)
	h.prepare("web", "image", snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:100000:65536",
	}))
	assert.Equal(t, cowcommon.SnapshotRoot, b.of(h.volume("web")))
}

// TestRootStyleOfCopies: a commit of a mounted snapshot makes a layer, and a snapshot that is made writable again keeps
// its style.
func TestRootStyleOfCopies(t *testing.T) {
	h, b := newStyledHost(t, false, cowcommon.SharedRoot)
	_, unmount := h.mountAt(h.prepare("web", "image"))
	h.commit("committed", "web")
	assert.Equal(t, cowcommon.SnapshotRoot, b.of(h.volume("committed")))
	unmount()

	for key, want := range map[string]cowcommon.RootStyle{"again": cowcommon.SharedRoot, unpackKey: cowcommon.SnapshotRoot} {
		h.prepare(key, "image")
		sealed := h.volume(key)
		require.NoError(t, cowcommon.Seal(t.Context(), h.backend, sealed))
		v, err := h.backend.Stat(t.Context(), sealed)
		require.NoError(t, err)
		require.NoError(t, h.thaw(t.Context(), key, v))
		require.NotEqual(t, sealed, h.volume(key))
		assert.Equal(t, want, b.of(h.volume(key)), key)
	}
}

// TestRootStyleOfUnpackedImage: the volume of an image has the key with which it was unpacked in its name. A colon in the
// key does not keep containers from sharing it.
func TestRootStyleOfUnpackedImage(t *testing.T) {
	h, _ := newStyledHost(t, false, cowcommon.SharedRoot)
	h.prepare(unpackKey, "")
	h.write(unpackKey, "file", []byte("text"))
	h.commit("sha256:abc", unpackKey)
	mounts := h.prepare("web", "sha256:abc")
	require.Len(t, mounts, 1)
	assert.Equal(t, "overlay", mounts[0].Type)
	v, err := h.backend.Stat(t.Context(), h.volume("web"))
	require.NoError(t, err)
	assert.Equal(t, cowcommon.SharedRoot, v.RootStyle)
}

// TestRootStyleThatOthersCannotMount: the default gives way to a volume of the snapshot's own, which is tried once. A style
// that a label names does not, and leaves nothing.
func TestRootStyleThatOthersCannotMount(t *testing.T) {
	h, b := newStyledHost(t, true, cowcommon.SharedRoot)
	for _, key := range []string{"one", "two"} {
		h.prepare(key, "image")
		assert.Equal(t, cowcommon.SnapshotRoot, b.of(h.volume(key)))
		h.write(key, "file", []byte("text"))
	}
	assert.Equal(t, 1, b.count)
	assert.Contains(t, h.log.String(), "its layers have no paths")

	before := h.state()
	_, err := h.Prepare(t.Context(), "named", "image", label(RootStyleLabel, "shared"))
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	assert.Equal(t, before, h.state())
}

// TestRootStyleOfSourceInUse: the default gives way to a volume of the snapshot's own, and a style that a label names does not.
func TestRootStyleOfSourceInUse(t *testing.T) {
	h, b := newStyledHost(t, false, cowcommon.SharedRoot)
	b.inUse = true
	h.prepare("one", "image")
	assert.Equal(t, cowcommon.SnapshotRoot, b.of(h.volume("one")))
	before := h.state()
	_, err := h.Prepare(t.Context(), "named", "image", label(RootStyleLabel, "shared"))
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.Equal(t, before, h.state())
	b.inUse = false
	h.prepare("two", "image")
	assert.Equal(t, cowcommon.SharedRoot, b.of(h.volume("two")), "it is tried again")
}
