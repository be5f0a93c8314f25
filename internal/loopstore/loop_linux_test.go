package loopstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestFirstWith: a loop device that does not answer keeps nobody waiting, and hides no other.
func TestFirstWith(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	has := func(device string) bool {
		if device == "dead" {
			<-end
		}
		return device == "own"
	}
	testfs.Within(t, func() {
		assert.Equal(t, "/dev/own", firstWith([]string{"dead", "other", "own"}, has, testfs.Patience))
		assert.Empty(t, firstWith([]string{"dead", "other"}, has, time.Millisecond))
		assert.Empty(t, firstWith([]string{"other"}, has, testfs.Patience))
		assert.Empty(t, firstWith(nil, has, testfs.Patience))
	})
}

// TestForeignDevice: a loop device of others gets no node, and one without a node, or in a read-only /dev, is in nobody's way.
func TestForeignDevice(t *testing.T) {
	s := newStore(t)
	_, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	image, err := s.openImage(os.O_RDONLY)
	require.NoError(t, err)
	defer image.Close()
	device, err := attached(image, s.Image)
	require.NoError(t, err)
	other, err := At(filepath.Join(t.TempDir(), "other"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(other.Image, nil, 0o600))
	foreign, err := os.Open(other.Image)
	require.NoError(t, err)
	defer foreign.Close()
	for _, flags := range []uintptr{0, unix.MS_RDONLY} {
		t.Run(fmt.Sprintf("flags %d", flags), func(t *testing.T) {
			mountUntilEnd(t, "dev", "/dev", "tmpfs", flags, "")
			found, err := attached(foreign, other.Image)
			require.NoError(t, err)
			assert.Empty(t, found)
			assert.NoFileExists(t, device)
		})
	}
}
