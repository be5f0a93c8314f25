package sigmask

import (
	"errors"
	"os"
	"os/signal"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDo waits for a timeout, which a signal would cut short, and sees that a signal to the thread comes afterwards.
func TestDo(t *testing.T) {
	got := make(chan os.Signal, 1)
	signal.Notify(got, unix.SIGUSR2)
	defer signal.Stop(got)
	want := errors.New("of the function")
	err := Do(func() error {
		require.NoError(t, unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR2))
		begin := time.Now()
		_, err := unix.Poll(nil, 100)
		assert.NoError(t, err, "not EINTR")
		assert.GreaterOrEqual(t, time.Since(begin), 90*time.Millisecond)
		assert.Empty(t, got)
		return want
	})
	assert.Equal(t, want, err)
	testfs.Receive(t, got)
}
