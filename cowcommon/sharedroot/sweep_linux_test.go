package sharedroot_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/sharedroot"
)

// TestSweep: the overlay of a view goes when its process was killed and nobody has the home open, and not before. That of a
// volume stays for New, since a container may run in it.
func TestSweep(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	s.mount("c")
	_, err := s.View(t.Context(), "c")
	require.NoError(t, err)
	sharedroot.Sweep(s.home, log)
	require.Len(t, overlaysBelow(t, s.home), 2)
	s.crash()
	sharedroot.Sweep(s.home, log)
	assert.Equal(t, []string{"c"}, overlaysBelow(t, s.home))
	s.open()
	assert.Empty(t, overlaysBelow(t, s.home))
}
