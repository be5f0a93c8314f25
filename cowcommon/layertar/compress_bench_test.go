package layertar

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// benchText returns n bytes that compress about as programs and text do.
func benchText(n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	var words []string
	for range 50_000 {
		words = append(words, fmt.Sprintf("%x ", random.Uint32()>>random.IntN(24)))
	}
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(words[int(random.ExpFloat64()*5000)%len(words)])
	}
	return b.Bytes()[:n]
}

// BenchmarkCompress and BenchmarkDecompress tell whether compression keeps up with the filesystem.
func BenchmarkCompress(b *testing.B) {
	data := benchText(32 << 20)
	for _, format := range []Format{Gzip, Zstd} {
		for _, level := range []int{0, 1} {
			b.Run(fmt.Sprintf("%v/level=%d", format, level), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					compressAll(b, io.Discard, format, level, data)
				}
			})
		}
	}
}

func BenchmarkDecompress(b *testing.B) {
	data := benchText(32 << 20)
	for _, format := range []Format{Gzip, Zstd} {
		var packed bytes.Buffer
		compressAll(b, &packed, format, 0, data)
		b.Run(format.String(), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r, _, err := Decompress(bytes.NewReader(packed.Bytes()))
				require.NoError(b, err)
				n, err := io.Copy(io.Discard, r)
				require.NoError(b, err)
				require.Equal(b, int64(len(data)), n)
				require.NoError(b, r.Close())
			}
		})
	}
}

func compressAll(b *testing.B, w io.Writer, format Format, level int, data []byte) {
	b.Helper()
	zw, err := Compress(w, format, level)
	require.NoError(b, err)
	_, err = zw.Write(data)
	require.NoError(b, err)
	require.NoError(b, zw.Close())
}
