package poll

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var errBusy = errors.New("busy")

func TestWhileBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pauses := Pauses{First: time.Second, Longest: 3 * time.Second}
		var at []time.Duration
		start := time.Now()
		require.NoError(t, WhileBusy(t.Context(), pauses, func() (bool, error) {
			at = append(at, time.Since(start))
			return len(at) < 5, errIf(len(at) < 5)
		}))
		assert.Equal(t, []time.Duration{0, time.Second, 3 * time.Second, 6 * time.Second, 9 * time.Second}, at)

		start = time.Now()
		pauses.AtMost = 5 * time.Second
		require.ErrorIs(t, WhileBusy(t.Context(), pauses, func() (bool, error) { return true, errBusy }), errBusy)
		assert.Equal(t, 5*time.Second, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.ErrorIs(t, WhileBusy(ctx, Pauses{First: time.Second}, func() (bool, error) { return true, errBusy }), context.DeadlineExceeded)
	})
}

func errIf(busy bool) error {
	if busy {
		return errBusy
	}
	return nil
}
