package stream

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWriterErrorReachesTheReader(t *testing.T) {
	broken := errors.New("broken")
	r := New(t.Context(), func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, "some")
		return errors.Join(err, broken)
	})
	content, err := io.ReadAll(r)
	assert.Equal(t, "some", string(content))
	assert.ErrorIs(t, err, broken)
	require.NoError(t, r.Close())
}

func TestCloseStopsTheWriterAndWaits(t *testing.T) {
	var stopped error
	r := New(t.Context(), func(ctx context.Context, w io.Writer) error {
		for stopped == nil {
			_, stopped = w.Write([]byte("more"))
		}
		stopped = errors.Join(stopped, ctx.Err())
		return stopped
	})
	_, err := io.ReadFull(r, make([]byte, 3))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.ErrorIs(t, stopped, io.ErrClosedPipe)
	assert.ErrorIs(t, stopped, context.Canceled)
}
