package testfs

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// Free waits until check finds nothing that uses a tree of which the test has just unmounted something. A process that
// was started meanwhile may have a copy of the mount for a moment, in a mount namespace of its own.
func Free(t testing.TB, check func() error) {
	t.Helper()
	assert.EventuallyWithT(t, func(c *assert.CollectT) { assert.NoError(c, check()) }, Patience, 50*time.Millisecond)
}
