package sharedroot_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
)

// testReceive: while a stream lasts, others use the volume on which it builds.
func testReceive(t *testing.T, s *store) {
	s.image("image")
	require.NoError(t, s.Clone(t.Context(), "changed", "image", cowcommon.VolumeOptions{}))
	s.edit("changed", func(dir string) { require.NoError(t, os.WriteFile(dir+"/new", []byte("new"), 0o644)) })
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "changed"))
	base, err := s.View(t.Context(), "image")
	require.NoError(t, err)
	top, err := s.View(t.Context(), "changed")
	require.NoError(t, err)
	var stream bytes.Buffer
	require.NoError(t, cowcommon.Send(t.Context(), s.Backend, &stream, base, top))
	require.NoError(t, errors.Join(top.Close(), base.Close()))

	r, w := io.Pipe()
	defer w.Close()
	received := make(chan error, 1)
	go func() {
		err := cowcommon.Receive(t.Context(), s.Backend, "received", "image", r)
		_ = r.CloseWithError(err) // nobody waits for a Receive that has failed
		received <- err
	}()
	_, err = w.Write(stream.Next(stream.Len() / 2))
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	require.NoError(t, s.Clone(ctx, "c", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}))
	_, err = s.Mount(ctx, "c", "")
	require.NoError(t, err)
	v, err := s.View(ctx, "image")
	require.NoError(t, err)
	require.NoError(t, v.Close())
	s.unmount("c")
	require.NoError(t, s.Remove(ctx, "c"))
	if !s.keepsOrigins {
		require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse)
	}

	_, err = w.Write(stream.Bytes())
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, <-received)
	require.Equal(t, "new", s.read("received", "/new"))

	s.container("c", "image")
	require.ErrorIs(t, cowcommon.Receive(ctx, s.Backend, "x", "c", &stream), errdefs.ErrFailedPrecondition, "it is not sealed")
	s.hasStyle("c", cowcommon.SharedRoot)
}
