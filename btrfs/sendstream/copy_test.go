package sendstream_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs/sendstream"
)

func TestCopy(t *testing.T) {
	for name, b := range realStreams(t) {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			require.NoError(t, sendstream.Copy(&out, iotest.HalfReader(bytes.NewReader(b))))
			assert.Equal(t, b, out.Bytes())

			// A stream that was begun anew after an interruption at any place.
			for i := range b {
				assert.Error(t, sendstream.Copy(io.Discard, bytes.NewReader(slices.Concat(b[:i+1], b))), "after %d bytes", i+1)
			}
			assert.ErrorIs(t, sendstream.Copy(io.Discard, bytes.NewReader(b[:len(b)-1])), io.ErrUnexpectedEOF)
			assert.ErrorIs(t, sendstream.Copy(io.Discard, bytes.NewReader(append(slices.Clone(b), 0))), sendstream.ErrMalformed)
			broken := errors.New("broken")
			assert.ErrorIs(t, sendstream.Copy(io.Discard, io.MultiReader(bytes.NewReader(b), iotest.ErrReader(broken))), broken)
			assert.ErrorIs(t, sendstream.Copy(failingWriter{broken}, bytes.NewReader(b)), broken)
		})
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }
