package eintr

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRepeats(t *testing.T) {
	for _, last := range []error{nil, syscall.EIO} {
		calls := 0
		call := func() (int, error) {
			if calls++; calls < 3 {
				return -1, syscall.EINTR
			}
			return calls, last
		}
		result, err := Retry(call)
		require.ErrorIs(t, err, last)
		assert.Equal(t, 3, result)

		calls = 0
		require.ErrorIs(t, Ignore(func() error { _, err := call(); return err }), last)
		assert.Equal(t, 3, calls)
	}
}
