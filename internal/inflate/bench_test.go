package inflate

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"go/build"
	"io"
	"os"
	"path/filepath"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"
)

// BenchmarkInflate compares with the other decoders in Go, on sources and on programs: Go's own.
func BenchmarkInflate(b *testing.B) {
	for _, data := range []struct{ name, dir string }{{"sources", "src/cmd"}, {"programs", "pkg/tool"}} {
		packed, size := packedTree(b, filepath.Join(build.Default.GOROOT, data.dir))
		for _, reader := range []struct {
			name string
			open func(r io.Reader) (io.Reader, error)
		}{
			{"inflate", func(r io.Reader) (io.Reader, error) { return NewReader(r) }},
			{"klauspost", func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) }},
			{"go", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
		} {
			b.Run(data.name+"/"+reader.name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(size)
				for b.Loop() {
					r, err := reader.open(bytes.NewReader(packed))
					require.NoError(b, err)
					n, err := io.Copy(io.Discard, struct{ io.Reader }{r})
					require.NoError(b, err)
					require.Equal(b, size, n)
				}
			})
		}
	}
}

// packedTree returns the tar of a directory as gzip makes it, and how long it is without.
func packedTree(b *testing.B, dir string) (packed []byte, size int64) {
	b.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	counted := &counter{w: zw}
	tw := tar.NewWriter(counted)
	require.NoError(b, tw.AddFS(os.DirFS(dir)))
	require.NoError(b, tw.Close())
	require.NoError(b, zw.Close())
	return out.Bytes(), counted.n
}

// counter counts written bytes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
