package layertar

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// sample is some data that compresses about as layers do.
func sample(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 500)
	for i := range words {
		words[i] = make([]byte, 1+rnd.IntN(40))
		for j := range words[i] {
			words[i][j] = byte(rnd.IntN(256))
		}
	}
	b := make([]byte, 0, n+40)
	for len(b) < n {
		b = append(b, words[rnd.IntN(len(words))]...)
	}
	return b[:n]
}

func compress(t testing.TB, data []byte, format Format, level, step int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := Compress(&b, format, level)
	require.NoError(t, err)
	for len(data) > 0 {
		n, err := w.Write(data[:min(step, len(data))])
		require.NoError(t, err)
		data = data[n:]
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestCompressRoundTrip(t *testing.T) {
	data := sample(9 << 20)
	for _, format := range []Format{Plain, Gzip, Zstd} {
		for _, level := range []int{0, 1, 9, 22} {
			if format == Plain && level > 0 || format == Gzip && level > 9 {
				continue
			}
			for _, size := range []int{0, 1, 100_000, len(data)} {
				if level == 22 && size > 100_000 {
					continue
				}
				t.Run(fmt.Sprintf("%v %d %d", format, level, size), func(t *testing.T) {
					packed := compress(t, data[:size], format, level, 1<<20)
					r, got, err := Decompress(bytes.NewReader(packed))
					require.NoError(t, err)
					assert.Equal(t, format, got)
					back, err := io.ReadAll(r)
					require.NoError(t, err)
					require.NoError(t, r.Close())
					assert.True(t, bytes.Equal(data[:size], back))
				})
			}
		}
	}
}

// TestCompressDeterministic asks for the same bytes on any number of processors and however the input
// comes.
func TestCompressDeterministic(t *testing.T) {
	data := sample(18 << 20)
	for _, format := range []Format{Gzip, Zstd} {
		want := sha256.Sum256(compress(t, data, format, 1, len(data)))
		for _, procs := range []int{1, 2, 5, 16} {
			old := runtime.GOMAXPROCS(procs)
			got := sha256.Sum256(compress(t, data, format, 1, 12_345*procs))
			runtime.GOMAXPROCS(old)
			assert.Equal(t, want, got, "%v on %d", format, procs)
		}
	}
}

func TestCompressArguments(t *testing.T) {
	for _, tt := range []struct {
		format Format
		level  int
	}{{Plain, 1}, {Gzip, 10}, {Gzip, -1}, {Zstd, 23}, {Zstd, -1}, {Format(9), 0}} {
		_, err := Compress(io.Discard, tt.format, tt.level)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%v %d", tt.format, tt.level)
	}
}

func TestCompressWriteError(t *testing.T) {
	boom := errors.New("boom")
	data := sample(20 << 20)
	for _, format := range []Format{Gzip, Zstd} {
		for _, after := range []int{0, 1, 100, 3 << 20} {
			before := runtime.NumGoroutine()
			w, err := Compress(&failingWriter{after, boom}, format, 1)
			require.NoError(t, err)
			_, werr := w.Write(data)
			_, werr2 := w.Write(data)
			cerr := w.Close()
			assert.ErrorIs(t, errors.Join(werr, werr2, cerr), boom, "%v after %d", format, after)
			assert.NoError(t, w.Close())
			assertGoroutines(t, before)
		}
	}
}

// failingWriter fails after some bytes.
type failingWriter struct {
	left int
	err  error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, w.err
	}
	return len(p), nil
}

type errWriter struct{ err error }

func (w errWriter) Write([]byte) (int, error) { return 0, w.err }

// assertGoroutines waits for goroutines to end that have been told to.
func assertGoroutines(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(testfs.Patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if runtime.NumGoroutine() <= before {
			return
		}
	}
	buf := make([]byte, 64<<10)
	assert.LessOrEqual(t, runtime.NumGoroutine(), before, "%s", buf[:runtime.Stack(buf, true)])
}

func TestDecompressForms(t *testing.T) {
	data := sample(3 << 20)
	gz := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, _ = w.Write(b)
		require.NoError(t, w.Close())
		return out.Bytes()
	}
	xz := func(b []byte) []byte { return packedBy(t, "xz", b) }
	bzip2 := func(b []byte) []byte { return packedBy(t, "bzip2", b) }
	zs := func(b []byte) []byte { return compress(t, b, Zstd, 1, 1<<20) }
	skippable := []byte{0x53, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 'a', 'b', 'c', 'd'}
	ustar := append([]byte{0x1f, 0x8b, 0x08}, make([]byte, 600)...)
	copy(ustar[257:], "ustar")
	for _, tt := range []struct {
		name   string
		packed []byte
		format Format
		want   []byte
	}{
		{"gzip members", append(gz(data[:1000]), gz(data[1000:])...), Gzip, data},
		{"zstd frames", append(zs(data[:1000]), zs(data[1000:])...), Zstd, data},
		{"zstd after a skippable frame", append(skippable, zs(data)...), Zstd, data},
		{"a tar whose first name looks like gzip", ustar, Plain, ustar},
		{"short", []byte("x"), Plain, []byte("x")},
		{"xz", xz(data), XZ, data},
		{"xz streams", append(xz(data[:1000]), xz(data[1000:])...), XZ, data},
		{"bzip2", bzip2(data), Bzip2, data},
		{"a name like bzip2", []byte("BZhang............................"), Plain, []byte("BZhang............................")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range []io.Reader{bytes.NewReader(tt.packed), iotest.OneByteReader(bytes.NewReader(tt.packed))} {
				d, format, err := Decompress(r)
				require.NoError(t, err)
				assert.Equal(t, tt.format, format)
				got, err := io.ReadAll(d)
				require.NoError(t, err)
				require.NoError(t, d.Close())
				assert.True(t, bytes.Equal(tt.want, got))
			}
		})
	}
}

// packedBy compresses with a program.
func packedBy(t *testing.T, program string, data []byte) []byte {
	t.Helper()
	cmd := exec.Command(program, "--compress", "--stdout")
	cmd.Stdin = bytes.NewReader(data)
	packed, err := cmd.Output()
	require.NoError(t, err)
	return packed
}

// TestDecompressNoXZ: the error names the missing program.
func TestDecompressNoXZ(t *testing.T) {
	packed := packedBy(t, "xz", []byte("text"))
	t.Setenv("PATH", t.TempDir())
	_, _, err := Decompress(bytes.NewReader(packed))
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	assert.ErrorContains(t, err, "xz-utils")
}

func TestDecompressErrors(t *testing.T) {
	data := sample(3 << 20)
	boom := errors.New("boom")
	for _, format := range []Format{Gzip, Zstd, Bzip2, XZ} {
		var packed []byte
		if format > Zstd {
			packed = packedBy(t, format.String(), data)
		} else {
			packed = compress(t, data, format, 1, 1<<20)
		}
		before := runtime.NumGoroutine()
		for name, r := range map[string]io.Reader{
			"truncated": bytes.NewReader(packed[:len(packed)-100]),
			"corrupt":   bytes.NewReader(append(append([]byte(nil), packed[:len(packed)/2]...), make([]byte, len(packed)/2)...)),
			"failing":   io.MultiReader(bytes.NewReader(packed[:1000]), iotest.ErrReader(boom)),
		} {
			d, _, err := Decompress(r)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, d)
			assert.ErrorContains(t, err, format.String(), "%s", name)
			if name == "failing" {
				assert.ErrorIs(t, err, boom)
			}
			require.NoError(t, d.Close())
		}
		// Closed in the middle.
		d, _, err := Decompress(bytes.NewReader(packed))
		require.NoError(t, err)
		_, err = io.ReadFull(d, make([]byte, 100))
		require.NoError(t, err)
		require.NoError(t, d.Close())
		assertGoroutines(t, before)
	}
	_, _, err := Decompress(iotest.ErrReader(boom))
	require.ErrorIs(t, err, boom)
}

// TestDecompressWindow refuses a frame that asks for more memory than any layer needs.
func TestDecompressWindow(t *testing.T) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(512<<20), zstd.WithSingleSegment(false))
	require.NoError(t, err)
	for range 5 {
		_, err = w.Write(sample(1 << 20))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	r, _, err := Decompress(&b)
	require.NoError(t, err)
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	require.ErrorIs(t, err, zstd.ErrWindowSizeExceeded)
	require.ErrorContains(t, err, "--long=27")
}

func TestFormat(t *testing.T) {
	for _, f := range []Format{Plain, Gzip, Zstd} {
		got, err := ParseFormat(f.String())
		require.NoError(t, err)
		assert.Equal(t, f, got)
	}
	_, err := ParseFormat("lzma")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.Equal(t, "Format(7)", Format(7).String())
}

func TestReadAhead(t *testing.T) {
	data := sample(5 << 20)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"as it comes": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "error with data": iotest.DataErrReader,
	} {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			h := sha256.New()
			r := ReadAhead(wrap(bytes.NewReader(data)), 100_000, h)
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(data, got))
			want := sha256.Sum256(data)
			assert.Equal(t, want[:], h.Sum(nil))
			_, err = r.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
			require.NoError(t, r.Close())
			require.NoError(t, r.Close())
			assertGoroutines(t, before)
		})
	}
	t.Run("closed early", func(t *testing.T) {
		before := runtime.NumGoroutine()
		r := ReadAhead(strings.NewReader(strings.Repeat("x", 10<<20)), 100_000)
		_, err := r.Read(make([]byte, 10))
		require.NoError(t, err)
		require.NoError(t, r.Close())
		assertGoroutines(t, before)
	})
	t.Run("failing tee", func(t *testing.T) {
		boom := errors.New("boom")
		r := ReadAhead(bytes.NewReader(data), 100_000, errWriter{boom})
		_, err := io.ReadAll(r)
		require.ErrorIs(t, err, boom)
		require.NoError(t, r.Close())
	})
	require.NoError(t, iotest.TestReader(ReadAhead(bytes.NewReader(data[:10_000]), 1000), data[:10_000]))
}
