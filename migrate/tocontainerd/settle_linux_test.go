package tocontainerd

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/snapshotter"
)

// settling notes which snapshots are settled.
type settling struct {
	snapshotter.Offerer
	settled []string
	err     error
}

func (s *settling) Settle(ctx context.Context, namespace, key string) error {
	s.settled = append(s.settled, namespace+" "+key)
	if s.err != nil {
		return s.err
	}
	return s.Offerer.Settle(ctx, namespace, key)
}

func (s *settling) CheckSettle(_ context.Context, namespace string, keys ...string) error {
	return fault.New(errdefs.ErrFailedPrecondition, "not %s %s", namespace, strings.Join(keys, " "))
}

// TestSettle: each layer is settled through Cowshed's socket, as containerd names its snapshot.
func TestSettle(t *testing.T) {
	h := newHost(t)
	s := h.newSource(subvolumes)
	target := h.target(h.options(Moby))
	h.run(target)
	offers := &settling{Offerer: target.offers}
	target.offers = offers
	var want []string
	for i := range s.inv.Layers {
		layer := &s.inv.Layers[i]
		info, err := target.find(h.in(Moby), layer)
		if errdefs.IsNotFound(err) { // nothing needs its snapshot
			require.ErrorIs(t, target.Settle(t.Context(), layer), errdefs.ErrNotFound)
			continue
		}
		require.NoError(t, err)
		want = append(want, Moby+" "+info.Name)
		require.NoError(t, target.Settle(t.Context(), layer))
		err = target.CheckSettle(t.Context(), layer)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "not "+Moby+" "+info.Name)
	}
	require.NotEmpty(t, want)
	both := want[len(want)-2] + " " + strings.TrimPrefix(want[len(want)-1], Moby+" ")
	require.ErrorContains(t, target.CheckSettle(t.Context(), s.layerOf("mount-init"), s.layerOf("mount")), "not "+both)
	assert.Equal(t, want, offers.settled)

	layer := s.layerOf("mount")
	offers.err = errdefs.ErrNotImplemented
	require.NoError(t, target.Settle(t.Context(), layer), "a daemon that settles nothing has adopted nothing")
	offers.err = errdefs.ErrFailedPrecondition
	require.ErrorIs(t, target.Settle(t.Context(), layer), errdefs.ErrFailedPrecondition)
	require.ErrorIs(t, target.Settle(t.Context(), &migrate.Layer{ID: "none", Kind: migrate.ContainerLayer}), errdefs.ErrNotFound)
	target.offers = nil
	require.NoError(t, target.Settle(t.Context(), layer))
	require.NoError(t, target.CheckSettle(t.Context(), layer))
}
