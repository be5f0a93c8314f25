package inuse

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOpenedOnceAndClosedAfterTheLastUse(t *testing.T) {
	var table Table[string]
	opened, closed := 0, 0
	open := func() (string, error) { opened++; return "resource", nil }
	end := func(r string) error { assert.Equal(t, "resource", r); closed++; return nil }

	for _, kind := range []Kind{Held, Held, Brief} {
		r, err := table.Acquire(t.Context(), "x", kind, open)
		require.NoError(t, err)
		assert.Equal(t, "resource", r)
	}
	assert.Equal(t, 2, table.Held("x"))
	require.NoError(t, table.Release("x", Held, end))
	require.NoError(t, table.Release("x", Brief, end))
	require.NoError(t, table.Release("x", Brief, end), "without a use")
	assert.Equal(t, 0, closed)
	require.NoError(t, table.Release("x", Held, end))
	assert.Equal(t, 1, opened)
	assert.Equal(t, 1, closed)
	require.NoError(t, table.Release("x", Held, end), "without a use")
	assert.Equal(t, 1, closed)
}

func TestFailedOpenLeavesNothing(t *testing.T) {
	var table Table[int]
	failed := errors.New("failed")
	_, err := table.Acquire(t.Context(), "x", Held, func() (int, error) { return 0, failed })
	require.ErrorIs(t, err, failed)
	release, err := table.Claim(t.Context(), "x")
	require.NoError(t, err)
	release()
}

func TestClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table Table[int]
		open := func() (int, error) { return 1, nil }
		end := func(int) error { return nil }

		_, err := table.Acquire(t.Context(), "x", Held, open)
		require.NoError(t, err)
		_, err = table.Claim(t.Context(), "x")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.NoError(t, table.Release("x", Held, end))

		_, err = table.Acquire(t.Context(), "x", Viewed, open)
		require.NoError(t, err)
		require.NoError(t, table.Release("x", Held, end), "without such a use")
		_, err = table.Claim(t.Context(), "x")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.NoError(t, table.Release("x", Viewed, end))

		// It waits for a brief use.
		_, err = table.Acquire(t.Context(), "x", Brief, open)
		require.NoError(t, err)
		time.AfterFunc(time.Second, func() { assert.NoError(t, table.Release("x", Brief, end)) })
		begun := time.Now()
		release, err := table.Claim(t.Context(), "x")
		require.NoError(t, err)
		assert.Equal(t, time.Second, time.Since(begun))

		// Others wait for its end, as long as they like.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = table.Acquire(ctx, "x", Held, open)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.AfterFunc(time.Second, release)
		_, err = table.Acquire(t.Context(), "x", Held, open)
		require.NoError(t, err)
		release()
		assert.Equal(t, 1, table.Held("x"), "releasing twice does nothing")
		require.NoError(t, table.Release("x", Held, end))
	})
}

func TestCloseAll(t *testing.T) {
	var table Table[string]
	for _, name := range []string{"x", "y"} {
		_, err := table.Acquire(t.Context(), name, Held, func() (string, error) { return name, nil })
		require.NoError(t, err)
	}
	release, err := table.Claim(t.Context(), "claimed")
	require.NoError(t, err)
	defer release()
	closed := map[string]string{}
	require.NoError(t, table.CloseAll(func(name, r string) error { closed[name] = r; return nil }))
	assert.Equal(t, map[string]string{"x": "x", "y": "y"}, closed)
	assert.Equal(t, 0, table.Held("x"))
}

func TestConcurrentUseAndClaims(t *testing.T) {
	var table Table[int]
	var open, claimed atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				_, err := table.Acquire(t.Context(), "x", Brief, func() (int, error) {
					assert.EqualValues(t, 1, open.Add(1))
					assert.Zero(t, claimed.Load())
					return 0, nil
				})
				assert.NoError(t, err)
				assert.NoError(t, table.Release("x", Brief, func(int) error { open.Add(-1); return nil }))
			}
		})
		wg.Go(func() {
			for range 50 {
				release, err := table.Claim(t.Context(), "x")
				assert.NoError(t, err)
				assert.EqualValues(t, 1, claimed.Add(1))
				assert.Zero(t, open.Load())
				claimed.Add(-1)
				release()
			}
		})
	}
	wg.Wait()
}
