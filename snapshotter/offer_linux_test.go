package snapshotter

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// foreign makes a subvolume, as another program does, with a file.
func (h *host) foreign(name string) string {
	h.t.Helper()
	dir := filepath.Join(h.mnt, name)
	out, err := exec.Command("btrfs", "subvolume", "create", dir).CombinedOutput()
	require.NoError(h.t, err, "%s", out)
	require.NoError(h.t, os.WriteFile(filepath.Join(dir, "foreign"), []byte(name), 0o600))
	return dir
}

// TestOffer adopts volumes through a socket, as containerd and the command do.
func TestOffer(t *testing.T) {
	h := newHost(t, Options{})
	conn, stop, err := serve(t.TempDir(), h.Snapshotter, nil)
	require.NoError(t, err)
	t.Cleanup(stop)
	client := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
	offers, ctx := OffersClient{conn}, t.Context()
	adopt := label(AdoptLabel, Offered)
	h.image("base")

	source := h.foreign("source")
	parent := ""
	for _, name := range []string{"first", "second"} { // the second has the first as its parent, as the volumes of images do
		key := "moby/7/" + name
		require.NoError(t, offers.Offer(ctx, "moby", name, source))
		_, err = client.Prepare(ctx, key, parent, adopt, label("containerd.io/snapshot/other", "kept"))
		require.NoError(t, err)
		assert.Equal(t, "source", h.content(key, "foreign"))
		info, err := client.Stat(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, map[string]string{"containerd.io/snapshot/other": "kept"}, info.Labels)
		assert.Equal(t, parent, info.Parent)
		v, err := h.backend.Stat(ctx, h.volume(key))
		require.NoError(t, err)
		if parent != "" {
			assert.Equal(t, h.volume(parent), v.Parent, "its changes are found by the filesystem")
		}
		h.write(key, "more", nil)
		parent = "moby/8/" + name
		require.NoError(t, client.Commit(ctx, parent, key))
	}
	assert.NoFileExists(t, filepath.Join(source, "more"))
	require.NoError(t, offers.CheckOffer(ctx, "moby", "", source, ""))
	require.NoError(t, offers.CheckOffer(ctx, "moby", "first", source, ""))
	require.ErrorIs(t, offers.CheckOffer(ctx, "", "base", source, ""), errdefs.ErrNotImplemented)
	require.ErrorIs(t, offers.CheckOffer(ctx, "moby", "", source, h.foreign("stranger")), errdefs.ErrNotImplemented)
	require.ErrorIs(t, offers.CheckOffer(ctx, "moby", "absent", source, ""), errdefs.ErrNotFound)

	before := h.state()
	refused := func(want error, key string, opts ...snapshots.Opt) {
		t.Helper()
		_, err := client.Prepare(ctx, key, "base", opts...)
		require.ErrorIs(t, err, want)
		assert.Equal(t, before, h.state())
	}
	refused(errdefs.ErrNotFound, "moby/9/second", adopt) // the offer was for one snapshot
	refused(errdefs.ErrInvalidArgument, "moby/10/x", label(AdoptLabel, source))

	require.NoError(t, offers.Offer(ctx, "moby", "key", source))
	refused(errdefs.ErrNotFound, "other/10/key", adopt)
	h.offers[offerKey{"moby", "key"}] = offer{source, time.Now().Add(-time.Second)}
	refused(errdefs.ErrNotFound, "moby/10/key", adopt)

	require.NoError(t, os.Mkdir(filepath.Join(source, "directory"), 0o700))
	require.NoError(t, offers.Offer(ctx, "moby", "key", filepath.Join(source, "directory")))
	refused(errdefs.ErrNotImplemented, "moby/11/key", adopt)
	require.NoError(t, offers.Offer(ctx, "moby", "key", source))
	refused(errdefs.ErrNotImplemented, "moby/11/key", adopt) // it is no relative of base

	require.NoError(t, offers.Offer(ctx, "moby", "plain", source))
	h.prepare("moby/12/plain", "base") // without the label
	assert.NoFileExists(t, filepath.Join(h.dir("moby/12/plain"), "foreign"))
	_, err = client.View(ctx, "moby/13/plain", "base", adopt)
	require.NoError(t, err)

	require.ErrorIs(t, offers.Offer(ctx, "moby", "", source), errdefs.ErrInvalidArgument)
	require.ErrorIs(t, offers.Offer(ctx, "moby", "key", ""), errdefs.ErrInvalidArgument)
}

// TestOffersAreBounded: offers that nobody takes are forgotten, and do not pile up.
func TestOffersAreBounded(t *testing.T) {
	s := newSnapshotter(t.Context(), t.TempDir(), adopting{}, Options{})
	old := offer{"source", time.Now().Add(-time.Second)}
	for n := range maxOffers {
		s.offers[offerKey{"old", string(rune(n + 1))}] = old
	}
	for n := range maxOffers {
		require.NoError(t, s.Offer(t.Context(), "new", string(rune(n+1)), "source"))
	}
	require.ErrorIs(t, s.Offer(t.Context(), "new", "one more", "source"), errdefs.ErrResourceExhausted)
	assert.Len(t, s.offers, maxOffers)
}

type adopting struct {
	cowcommon.Backend
	cowcommon.Adopter
}

// settling notes which volumes are settled.
type settling struct {
	cowcommon.Backend
	settled *[]string
}

func (b settling) Unwrap() cowcommon.Backend { return b.Backend }

func (b settling) Settle(_ context.Context, name string) error {
	*b.settled = append(*b.settled, name)
	return nil
}

func (b settling) CheckSettle(_ context.Context, names ...string) error {
	return fault.New(errdefs.ErrFailedPrecondition, "not %s", strings.Join(names, " "))
}

// TestSettle settles the volumes of snapshots through a socket, by the names that containerd's clients know.
func TestSettle(t *testing.T) {
	h := newHost(t, Options{})
	var settled []string
	h.Snapshotter.backend = settling{h.backend, &settled}
	conn, stop, err := serve(t.TempDir(), h.Snapshotter, nil)
	require.NoError(t, err)
	t.Cleanup(stop)
	offers, ctx := OffersClient{conn}, t.Context()
	h.prepare("moby/1/key", "")
	h.prepare("other/2/key", "")
	h.prepare("plain", "")
	require.NoError(t, offers.Settle(ctx, "moby", "key"))
	require.NoError(t, offers.Settle(ctx, "", "plain"))
	assert.Equal(t, []string{h.volume("moby/1/key"), h.volume("plain")}, settled)
	err = offers.CheckSettle(ctx, "moby", "key")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "not "+h.volume("moby/1/key"))
	h.prepare("moby/3/other", "")
	require.ErrorContains(t, offers.CheckSettle(ctx, "moby", "other", "key"), "not "+h.volume("moby/1/key")+" "+h.volume("moby/3/other"))
	require.ErrorIs(t, offers.CheckSettle(ctx, "moby", "key", "absent"), errdefs.ErrNotFound)
	for namespace, key := range map[string]string{"moby": "absent", "": "key", "third": "key"} {
		require.ErrorIs(t, offers.Settle(ctx, namespace, key), errdefs.ErrNotFound)
		require.ErrorIs(t, offers.CheckSettle(ctx, namespace, key), errdefs.ErrNotFound)
	}
	assert.Len(t, settled, 2)
}

// TestOfferWithoutAdopter: the client is told at once.
func TestOfferWithoutAdopter(t *testing.T) {
	s := newSnapshotter(t.Context(), t.TempDir(), struct{ cowcommon.Backend }{}, Options{})
	require.ErrorIs(t, s.Offer(t.Context(), "moby", "key", "source"), errdefs.ErrNotImplemented)
}

// spacious is a Backend whose volumes are elsewhere than its home.
type spacious struct{ cowcommon.Backend }

func (spacious) Place() string                        { return "tank/layers" }
func (spacious) Free(context.Context) (uint64, error) { return 1000, nil }

// TestCheckRoom: a Backend that knows its space is asked for it, through a socket too.
func TestCheckRoom(t *testing.T) {
	h := newHost(t, Options{})
	conn, stop, err := serve(t.TempDir(), h.Snapshotter, nil)
	require.NoError(t, err)
	t.Cleanup(stop)
	offers := OffersClient{conn}
	require.ErrorIs(t, offers.CheckRoom(t.Context(), 1<<60), errdefs.ErrNotImplemented, "its home tells")
	h.Snapshotter.backend = spacious{h.Snapshotter.backend}
	require.NoError(t, offers.CheckRoom(t.Context(), 1000))
	err = offers.CheckRoom(t.Context(), 1001)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	assert.ErrorContains(t, err, "tank/layers has")
}
