package graphdriver

import (
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func noDriver(string, []string, user.IdentityMapping) (Driver, error) { return nil, ErrNotSupported }

func TestRegister(t *testing.T) {
	registered(t, nil)
	require.NoError(t, Register("one", noDriver))
	require.NoError(t, Register("another", noDriver))
	assert.Equal(t, []string{"another", "one"}, Drivers())
	assert.True(t, IsRegistered("one"))
	assert.False(t, IsRegistered("two"))

	require.ErrorIs(t, Register("one", noDriver), errdefs.ErrAlreadyExists)
}

func TestRegisterRefuses(t *testing.T) {
	registered(t, nil)
	for _, name := range []string{"", ".", "..", "a/b", "/a", "a/", "../a"} {
		require.ErrorIs(t, Register(name, noDriver), errdefs.ErrInvalidArgument, "%q", name)
	}
	require.ErrorIs(t, Register("one", nil), errdefs.ErrInvalidArgument)
	assert.Empty(t, Drivers())
}

func TestRegisterConcurrently(t *testing.T) {
	registered(t, nil)
	var (
		wg   sync.WaitGroup
		errs = make([]error, 8)
	)
	for i := range errs {
		wg.Go(func() { errs[i] = Register("one", noDriver) })
	}
	wg.Wait()
	succeeded := 0
	for _, err := range errs {
		if err == nil {
			succeeded++
		} else {
			assert.ErrorIs(t, err, errdefs.ErrAlreadyExists)
		}
	}
	assert.Equal(t, 1, succeeded)
}
