package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func nothing() error { return nil }

// TestCloseReturnsWhatTheReaderHasNotSeen closes readers early and late, of writers and releases that fail.
func TestCloseReturnsWhatTheReaderHasNotSeen(t *testing.T) {
	broken, held := errors.New("broken"), errors.New("still held")
	release := func() error { return held }
	endless := func(_ context.Context, w io.Writer) error {
		for {
			if _, err := w.Write([]byte("more")); err != nil {
				return err
			}
		}
	}

	r := New(t.Context(), endless, release)
	_, err := io.ReadFull(r, make([]byte, 3))
	require.NoError(t, err)
	assert.Equal(t, held, r.Close(), "and not that the writer was stopped")
	assert.NoError(t, r.Close())

	failed := make(chan struct{})
	r = New(t.Context(), func(context.Context, io.Writer) error { defer close(failed); return broken }, release)
	<-failed
	err = r.Close()
	require.ErrorIs(t, err, broken)
	require.ErrorIs(t, err, held)

	r = New(t.Context(), pieces("some"), release)
	content, err := io.ReadAll(r)
	assert.Equal(t, "some", string(content))
	assert.ErrorIs(t, err, held)
	assert.NoError(t, r.Close(), "it has been told")

	cause := errors.New("somebody else's context")
	ctx, cancel := context.WithCancelCause(t.Context())
	r = New(ctx, func(ctx context.Context, _ io.Writer) error { <-ctx.Done(); return ctx.Err() }, nothing)
	cancel(cause)
	assert.ErrorIs(t, r.Close(), context.Canceled, "it was not Close that stopped the writer")
}

func TestWriterErrorReachesTheReader(t *testing.T) {
	broken := errors.New("broken")
	r := New(t.Context(), func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, "some")
		return errors.Join(err, broken)
	}, nothing)
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
	}, nothing)
	_, err := io.ReadFull(r, make([]byte, 3))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.ErrorIs(t, stopped, io.ErrClosedPipe)
	assert.ErrorIs(t, stopped, context.Canceled)
}

// pieces writes its pieces.
func pieces(want ...string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		for _, piece := range want {
			if _, err := io.WriteString(w, piece); err != nil {
				return err
			}
		}
		return nil
	}
}

// recorder keeps its input, and fails from some Write on, having taken a byte.
type recorder struct {
	writes []string
	fail   int // 0: never
}

var errFull = errors.New("full")

func (r *recorder) Write(p []byte) (int, error) {
	if r.fail > 0 && len(r.writes)+1 >= r.fail {
		return 1, errFull
	}
	r.writes = append(r.writes, string(p))
	return len(p), nil
}

func TestCopyHandsOverThePieces(t *testing.T) {
	r := New(t.Context(), pieces("one", "", "two", "three"), nothing)
	head := make([]byte, 2)
	_, err := io.ReadFull(r, head)
	require.NoError(t, err)
	var w recorder
	n, err := io.Copy(&w, r)
	require.NoError(t, err)
	assert.Equal(t, "on", string(head))
	assert.Equal(t, []string{"e", "two", "three"}, w.writes)
	assert.Equal(t, int64(9), n)
	n, err = io.Copy(&w, r)
	require.NoError(t, err)
	assert.Zero(t, n)
	require.NoError(t, r.Close())
}

func TestWrappedEOFIsAnError(t *testing.T) {
	broken := fmt.Errorf("the file ended: %w", io.EOF)
	r := New(t.Context(), func(context.Context, io.Writer) error { return broken }, nothing)
	_, err := io.Copy(io.Discard, r)
	assert.Equal(t, broken, err)
	require.NoError(t, r.Close())
}

func TestDestinationThatFails(t *testing.T) {
	r := New(t.Context(), pieces("one", "two"), nothing)
	n, err := io.Copy(&recorder{fail: 2}, r)
	require.ErrorIs(t, err, errFull)
	assert.Equal(t, int64(4), n)
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Equal(t, "wo", string(rest))
	require.NoError(t, r.Close())
}

func TestCloseWakesTheReader(t *testing.T) {
	for name, read := range map[string]func(r io.Reader) error{
		"read":     func(r io.Reader) error { _, err := r.Read(make([]byte, 1)); return err },
		"write to": func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
	} {
		t.Run(name, func(t *testing.T) {
			for range 1000 { // the function ends while the reader is being closed
				r := New(t.Context(), func(ctx context.Context, _ io.Writer) error {
					<-ctx.Done()
					return ctx.Err()
				}, nothing)
				woken := make(chan error)
				go func() { woken <- read(r) }()
				require.NoError(t, r.Close())
				require.ErrorIs(t, <-woken, io.ErrClosedPipe)
				require.ErrorIs(t, read(r), io.ErrClosedPipe)
				require.NoError(t, r.Close())
			}
		})
	}
}

// TestCloseEndsWriteFirst: it is no error that Close has ended Write, also if the function returns before its context ends.
func TestCloseEndsWriteFirst(t *testing.T) {
	r := New(t.Context(), func(_ context.Context, w io.Writer) error {
		_, err := w.Write([]byte("nobody reads it"))
		return err
	}, nothing).(*reader)
	cancel := r.cancel
	r.cancel = func() {
		<-r.done
		cancel()
	}
	require.NoError(t, r.Close())
}

// TestCloseTakesNothingAway: bytes that were lent are no longer looked at when Write has returned.
func TestCloseTakesNothingAway(t *testing.T) {
	for range 100 {
		r := New(t.Context(), func(_ context.Context, w io.Writer) error {
			piece := make([]byte, 1<<10)
			for {
				if _, err := w.Write(piece); err != nil {
					return err
				}
				clear(piece) // the race detector sees a reader that is not done
			}
		}, nothing)
		woken := make(chan error)
		go func() {
			_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 100))
			woken <- err
		}()
		_, err := r.Read(make([]byte, 10))
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.ErrorIs(t, <-woken, io.ErrClosedPipe)
	}
}

func TestLateWrite(t *testing.T) {
	var kept io.Writer
	r := New(t.Context(), func(_ context.Context, w io.Writer) error {
		kept = w
		return nil
	}, nothing)
	_, err := io.ReadAll(r)
	require.NoError(t, err)
	_, err = kept.Write([]byte("late"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.NoError(t, r.Close())
}

// BenchmarkStream moves pieces as large as those of a layer tar to io.Copy, which is given a destination of
// its own or reads by itself.
func BenchmarkStream(b *testing.B) {
	const pieces, size = 128, 512 << 10
	for name, open := range map[string]func(r io.Reader) io.Reader{
		"write to": func(r io.Reader) io.Reader { return r },
		"read":     func(r io.Reader) io.Reader { return struct{ io.Reader }{r} },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(pieces * size)
			for b.Loop() {
				r := New(b.Context(), func(_ context.Context, w io.Writer) error {
					piece := make([]byte, size)
					for range pieces {
						if _, err := w.Write(piece); err != nil {
							return err
						}
					}
					return nil
				}, nothing)
				_, err := io.Copy(io.Discard, open(r))
				require.NoError(b, err)
				require.NoError(b, r.Close())
			}
		})
	}
}
