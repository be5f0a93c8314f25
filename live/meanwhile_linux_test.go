package live_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// meanwhile is a Backend without Exchanger that calls before just before the layer web is renamed.
type meanwhile struct {
	*failing
	before func()
}

func (m meanwhile) Rename(ctx context.Context, name, to string) error {
	if name == "web" {
		m.before()
	}
	return m.failing.Rename(ctx, name, to)
}

// eachMeanwhile are Backends that call before just before the layer web loses its name.
func eachMeanwhile(home func(t *testing.T) home, before func(b cowcommon.Backend)) map[string]crashing {
	return map[string]crashing{
		"native": {home, func(f *failing) cowcommon.Backend {
			return around{failingNative{f}, func() { before(f.Backend) }, func() {}}
		}},
		"by clones": {home, func(f *failing) cowcommon.Backend {
			return meanwhile{f, func() { before(f.Backend) }}
		}},
	}
}

// TestSealedMeanwhile: a layer is sealed, as by a commit of a container, while a rollback of it is under way. It keeps its
// content, wherever the rollback is interrupted.
func TestSealedMeanwhile(t *testing.T) {
	seal := func(b cowcommon.Backend) { assert.NoError(t, cowcommon.Seal(t.Context(), b, "web")) }
	kinds := eachMeanwhile(func(t *testing.T) home { return newHome(t) }, seal)
	eachCrash(t, kinds,
		func(h home) {
			h.create("web")
			h.put("web", "file", "1")
			_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
			require.NoError(t, err)
			h.put("web", "file", "2")
		},
		func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			if errors.Is(err, errCrash) {
				return err
			}
			require.ErrorIs(h.t, err, fault.ErrSealed)
			return nil
		},
		func(h home, done bool) {
			h.assertClean(1, "web")
			assert.Equal(h.t, "2", h.get("web", "file"))
			assert.Equal(h.t, []string{"one"}, h.names("web"))
			v, err := h.backend.Stat(t.Context(), "web")
			require.NoError(h.t, err)
			assert.True(h.t, v.Sealed || !done)
		})
}

// TestLimitMeanwhile: a limit is set while a rollback is under way. The layer has it afterwards, wherever the rollback is
// interrupted. A limit that is set after the exchange stays.
func TestLimitMeanwhile(t *testing.T) {
	quotas := func(t *testing.T) home { return newHome(t, testfs.WithSimpleQuota()) }
	set := func(b cowcommon.Backend, mib uint64) {
		assert.NoError(t, cowcommon.SetLimit(t.Context(), b, "web", quota.Limit{Bytes: mib << 20}))
	}
	isSet := false
	begin := func(h home) {
		isSet = false
		require.NoError(t, h.backend.Create(t.Context(), "web", cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 64 << 20}}))
		_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
	}
	kinds := eachMeanwhile(quotas, func(b cowcommon.Backend) { set(b, 32); isSet = true })
	eachCrash(t, kinds, begin,
		func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			return err
		},
		func(h home, done bool) {
			require.NoError(t, h.Sweep(t.Context()))
			v, err := h.backend.Stat(t.Context(), "web")
			require.NoError(t, err)
			assert.EqualValues(t, map[bool]int{true: 32 << 20, false: 64 << 20}[isSet], v.Limit.Bytes)
		})

	h := quotas(t)
	begin(h)
	all := failingNative{&failing{Backend: h.backend, left: -1}}
	_, err := h.over(around{all, func() { set(h.backend, 32) }, func() { set(h.backend, 16) }}).Rollback(t.Context(), "web", "one", live.RollbackOptions{})
	require.NoError(t, err)
	v, err := h.backend.Stat(t.Context(), "web")
	require.NoError(t, err)
	assert.EqualValues(t, 16<<20, v.Limit.Bytes)
}
