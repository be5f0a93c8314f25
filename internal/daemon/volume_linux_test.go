package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestVolumeOfSilent: the question to a daemon that does not answer ends. The caller gives no time for it, since that would count
// for a recovery without a daemon too.
func TestVolumeOfSilent(t *testing.T) {
	t.Parallel()
	c := Config{Root: t.TempDir(), Address: filepath.Join(t.TempDir(), "socket")}
	require.NoError(t, os.Mkdir(filepath.Join(c.Root, containerdDir), 0o700))
	listener, err := net.Listen("unix", c.Address)
	require.NoError(t, err)
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	_, err = VolumeOf(ctx, c, slog.New(slog.DiscardHandler), "test", "web")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, ctx.Err())
}
