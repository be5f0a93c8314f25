package btrfsctl

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestAskAgain: asking ends where each call takes long, and a call that hangs is asked for a few times only. A call that the kernel
// forgets does not wait for the interval of 30 s.
func TestAskAgain(t *testing.T) {
	for name, test := range map[string]struct {
		commit, ask, within time.Duration
	}{
		"soon": {time.Millisecond, time.Millisecond, time.Millisecond},
		"slow": {3 * time.Second, 3 * time.Second, 20 * time.Second},
		"hung": {time.Hour, time.Hour, 3 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int64
				begun := time.Now()
				require.NoError(t, askAgain(
					func() error { time.Sleep(test.commit); return nil },
					func() error {
						if asked.Add(1) > 30 {
							return nil // and the test fails
						}
						time.Sleep(test.ask)
						return nil
					}))
				assert.LessOrEqual(t, time.Since(begun), test.within)
				assert.Less(t, asked.Load(), int64(20))
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		begun, begins := time.Now(), make(chan struct{})
		var asked atomic.Int64
		err := askAgain(func() error { <-begins; return errors.New("of the commit") }, func() error {
			if asked.Add(1) == 3 { // the first two are forgotten too
				close(begins)
			}
			<-begins
			return nil
		})
		require.EqualError(t, err, "of the commit")
		assert.Equal(t, 7*firstPause, time.Since(begun))
	})
}
