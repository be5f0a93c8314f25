package apiserver

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// TestCompressCut: a stream that has failed is not complete. If that was before its first byte, it has none.
func TestCompressCut(t *testing.T) {
	failure := errors.New("a failure")
	large := make([]byte, 8<<20)
	_, _ = rand.Read(large)
	for name, format := range map[string]layertar.Format{"plain": layertar.Plain, "gzip": layertar.Gzip, "zstd": layertar.Zstd} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			require.ErrorIs(t, compress(&out, format, func(io.Writer) error { return failure }), failure)
			assert.Empty(t, out.Bytes())

			require.ErrorIs(t, compress(&out, format, func(w io.Writer) error {
				_, err := w.Write(large)
				return errors.Join(err, failure)
			}), failure)
			if format != layertar.Plain {
				assert.False(t, isComplete(out.Bytes()))
			}

			out.Reset()
			require.NoError(t, compress(&out, format, func(w io.Writer) error {
				_, err := w.Write(large)
				return err
			}))
			assert.True(t, isComplete(out.Bytes()))
		})
	}
}

// isComplete reports whether a stream has its end.
func isComplete(data []byte) bool {
	r, _, err := layertar.Decompress(bytes.NewReader(data))
	if err != nil {
		return false
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err == nil
}
