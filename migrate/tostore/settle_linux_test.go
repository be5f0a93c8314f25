package tostore

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
)

// settling notes which volumes are settled.
type settling struct {
	cowcommon.Backend
	settled []string
}

func (b *settling) Unwrap() cowcommon.Backend { return b.Backend }

func (b *settling) Settle(_ context.Context, name string) error {
	b.settled = append(b.settled, name)
	return nil
}

func (b *settling) CheckSettle(_ context.Context, names ...string) error {
	return fault.New(errdefs.ErrFailedPrecondition, "not %s", strings.Join(names, " "))
}

// TestSettle: each layer is settled by the name that it has in the store.
func TestSettle(t *testing.T) {
	p := newPlace(t, "btrfs")
	require.NoError(t, p.run())
	source, err := dockerroot.Open(t.Context(), dockerroot.Options{Dir: p.sample.Dir})
	require.NoError(t, err)
	defer source.Close()
	inv, err := source.Inventory(t.Context())
	require.NoError(t, err)
	target := p.target()
	defer target.Close()
	backend := &settling{Backend: target.backend}
	target.backend = backend
	for i := range inv.Layers {
		require.NoError(t, target.Settle(t.Context(), &inv.Layers[i]))
		err := target.CheckSettle(t.Context(), &inv.Layers[i])
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "not "+backend.settled[i])
	}
	assert.ElementsMatch(t, p.volumes(), backend.settled)
	require.ErrorContains(t, target.CheckSettle(t.Context(), &inv.Layers[0], &inv.Layers[1]), backend.settled[0]+" "+backend.settled[1])
	require.ErrorIs(t, target.Settle(t.Context(), &migrate.Layer{ID: "none", Kind: migrate.ContainerLayer}), errdefs.ErrNotFound)
}
