//go:build !linux

package detect

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
)

func TestOtherPlatforms(t *testing.T) {
	require.ErrorIs(t, Btrfs("."), graphdriver.ErrNotSupported)
	require.ErrorIs(t, ZFS(t.Context(), "."), graphdriver.ErrNotSupported)
	_, err := Probe(".")
	require.ErrorIs(t, err, graphdriver.ErrNotSupported)
}
