package cowcommon

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/quota"
)

// plainBackend has none of the optional interfaces.
type plainBackend struct{ Backend }

type renamer struct {
	plainBackend
	Renamer
}

type wrapper struct {
	plainBackend
	inner Backend
}

func (w wrapper) Unwrap() Backend { return w.inner }

func TestAs(t *testing.T) {
	inner := renamer{}
	for _, b := range []Backend{inner, wrapper{inner: inner}, wrapper{inner: wrapper{inner: inner}}} {
		found, ok := As[Renamer](b)
		require.True(t, ok)
		assert.Equal(t, inner, found)
		_, ok = As[Sealer](b)
		assert.False(t, ok)
	}
}

func TestWithoutOptionalInterfaces(t *testing.T) {
	b, ctx := plainBackend{}, t.Context()
	for name, err := range map[string]error{
		"seal":     Seal(ctx, b, "a"),
		"rename":   Rename(ctx, b, "a", "b"),
		"usage":    second(Usage(ctx, b, "a")),
		"limit":    SetLimit(ctx, b, "a", quota.Limit{}),
		"send":     Send(ctx, b, nil, nil, nil),
		"receive":  Receive(ctx, b, "a", "", nil),
		"keep":     second(Keep(ctx, b, "a")),
		"style":    SetRootStyle(ctx, b, "a", SharedRoot),
		"scratch":  second(Scratch(ctx, b, nil)),
		"adopt":    Adopt(ctx, b, "a", "", "/b", VolumeOptions{}),
		"exchange": Exchange(ctx, b, "a", "b"),
		"hints":    second(Hints(ctx, b, nil, nil)),
	} {
		require.ErrorIs(t, err, errdefs.ErrNotImplemented, name)
	}
	require.NoError(t, Settle(ctx, b, "a"), "a backend that is no Settler has nothing to settle")
	require.NoError(t, CheckSettle(ctx, b, "a"))
	_, err := Hints(ctx, b, nil, nil)
	require.ErrorIs(t, err, treediff.ErrNoHints)
}
