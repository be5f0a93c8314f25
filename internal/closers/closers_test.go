package closers

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestClose(t *testing.T) {
	var c Closers
	require.NoError(t, c.Close())
	var closed []string
	first, second := errors.New("first"), errors.New("second")
	c.Add(func() error { closed = append(closed, "first"); return first })
	c.Add(func() error { closed = append(closed, "second"); return second })
	err := c.Close()
	require.ErrorIs(t, err, first)
	require.ErrorIs(t, err, second)
	require.NoError(t, c.Close())
	assert.Equal(t, []string{"second", "first"}, closed)
}
