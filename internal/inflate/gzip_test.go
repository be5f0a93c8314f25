package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	kflate "github.com/klauspost/compress/flate"
	kgzip "github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sample is n bytes that compress as programs, text, noise and empty space do, in turns.
func sample(seed uint64, n int) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		piece := 1 + random.IntN(60_000)
		switch kind := random.IntN(6); kind {
		case 0: // one byte
			b.Write(bytes.Repeat([]byte{byte(random.IntN(256))}, piece))
		case 1: // noise
			for range piece {
				b.WriteByte(byte(random.Uint32()))
			}
		case 2: // a short period
			period := make([]byte, 2+random.IntN(20))
			for i := range period {
				period[i] = byte(random.Uint32())
			}
			b.Write(bytes.Repeat(period, 1+piece/len(period)))
		case 3: // the stream before
			if from := b.Len() - 32<<10; from > 0 {
				b.Write(bytes.Clone(b.Bytes()[from : from+min(piece, 32<<10)]))
			}
		default: // words
			for range piece / 8 {
				fmt.Fprintf(&b, "%x ", uint64(random.ExpFloat64()*float64(uint32(1)<<(4*kind))))
			}
		}
	}
	return b.Bytes()[:n]
}

// packers make gzip of data in all possible ways.
func packers(t testing.TB) map[string]func(data []byte) []byte {
	all := make(map[string]func(data []byte) []byte)
	of := func(open func(w io.Writer) (io.WriteCloser, error)) func(data []byte) []byte {
		return func(data []byte) []byte {
			var b bytes.Buffer
			w, err := open(&b)
			require.NoError(t, err)
			_, err = w.Write(data)
			require.NoError(t, err)
			require.NoError(t, w.Close())
			return b.Bytes()
		}
	}
	for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
		all[fmt.Sprintf("go %d", level)] = of(func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) })
		all[fmt.Sprintf("klauspost %d", level)] = of(func(w io.Writer) (io.WriteCloser, error) { return kgzip.NewWriterLevel(w, level) })
	}
	for _, size := range []int{32, 256, 4096} {
		all[fmt.Sprintf("window %d", size)] = of(func(w io.Writer) (io.WriteCloser, error) {
			deflate, err := kflate.NewWriterWindow(w, size)
			return &gzipWriter{w: w, deflate: deflate}, err
		})
	}
	return all
}

// gzipWriter puts a header and a trailer around DEFLATE data.
type gzipWriter struct {
	w       io.Writer
	deflate io.WriteCloser
	data    []byte
}

func (g *gzipWriter) Write(p []byte) (int, error) {
	g.data = append(g.data, p...)
	return len(p), nil
}

func (g *gzipWriter) Close() error {
	_, _ = g.w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
	_, err := g.deflate.Write(g.data)
	err = errors.Join(err, g.deflate.Close())
	_, _ = g.w.Write(trailer(g.data))
	return err
}

// trailer is the end of a member that holds data.
func trailer(data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(data))
	return binary.LittleEndian.AppendUint32(b, uint32(len(data)))
}

// most is how much is looked at of a stream that may unfold to any size.
const most = 4 << 20

// inflated reads all of a gzip stream.
func inflated(r io.Reader) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, most))
}

// referred is the result of compress/gzip.
func referred(r io.Reader) ([]byte, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, most))
}

// class tells errors apart as callers can.
func class(err error) string {
	var corrupt flate.CorruptInputError
	switch {
	case err == nil:
		return "none"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "truncated"
	case errors.Is(err, io.EOF):
		return "empty"
	case errors.Is(err, gzip.ErrHeader):
		return "header"
	case errors.Is(err, gzip.ErrChecksum):
		return "checksum"
	case errors.As(err, &corrupt):
		return "corrupt"
	}
	return err.Error()
}

// assertAlike compares the result of a stream with that of compress/gzip. That accepts flags that RFC 1952 reserves
// and says to refuse, as klauspost's gzip and this one do.
func assertAlike(t testing.TB, packed []byte, what string) {
	t.Helper()
	want, wantErr := referred(bytes.NewReader(packed))
	got, err := inflated(bytes.NewReader(packed))
	if class(err) == "header" && class(wantErr) != "header" {
		z, kerr := kgzip.NewReader(bytes.NewReader(packed))
		if kerr == nil {
			_, kerr = io.CopyN(io.Discard, z, most)
		}
		require.ErrorIs(t, kerr, gzip.ErrHeader, "%s", what)
		require.True(t, bytes.HasPrefix(want, got), "%s", what)
		return
	}
	require.Equal(t, class(wantErr), class(err), "%s: %v, want %v", what, err, wantErr)
	require.True(t, bytes.Equal(want, got), "%s: %d bytes, want %d; the first that differ are at %d", what, len(got), len(want), differAt(want, got))
}

func differAt(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestRoundTrip(t *testing.T) {
	for name, pack := range packers(t) {
		t.Run(name, func(t *testing.T) {
			for seed, size := range []int{0, 1, 2, 300, 70_000, full, outSize, outSize + 1, 700_000} {
				data := sample(uint64(seed), size)
				got, err := inflated(bytes.NewReader(pack(data)))
				require.NoError(t, err)
				require.True(t, bytes.Equal(data, got), "%d bytes: differ at %d", size, differAt(data, got))
			}
		})
	}
}

// TestPrograms reads the output of programs, which have other ways to find matches and to cut blocks: gzip, pigz,
// zopfli and igzip. testdata has the license compressed by the last three.
func TestPrograms(t *testing.T) {
	files, err := filepath.Glob("testdata/*.gz")
	require.NoError(t, err)
	require.Len(t, files, 7)
	text, err := os.ReadFile("../../LICENSE")
	require.NoError(t, err)
	for _, file := range files {
		packed, err := os.ReadFile(file)
		require.NoError(t, err)
		got, err := inflated(bytes.NewReader(packed))
		require.NoError(t, err, file)
		assert.True(t, bytes.Equal(text, got), file)
	}
	data := sample(7, 2<<20)
	for level := 1; level <= 9; level++ {
		cmd := exec.Command("gzip", fmt.Sprintf("-%d", level))
		cmd.Stdin = bytes.NewReader(data)
		packed, err := cmd.Output()
		require.NoError(t, err)
		got, err := inflated(bytes.NewReader(packed))
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got), "level %d", level)
	}
}

// TestRandomCodes reads blocks of which the codes are as odd as they may be: long ones, few, and with matches of all lengths
// and distances.
func TestRandomCodes(t *testing.T) {
	for seed := range uint64(300) {
		packed := randomStream(seed)
		assertAlike(t, packed, fmt.Sprintf("seed %d", seed))
	}
}

// TestSources reads a stream however it comes.
func TestSources(t *testing.T) {
	data := sample(1, 300_000)
	packed := packers(t)["go 6"](data)
	for name, r := range map[string]io.Reader{
		"bytes":           iotest.OneByteReader(bytes.NewReader(packed)),
		"halves":          iotest.HalfReader(bytes.NewReader(packed)),
		"error with data": iotest.DataErrReader(bytes.NewReader(packed)),
		"nothing between": &hesitant{r: bytes.NewReader(packed)},
	} {
		got, err := inflated(r)
		require.NoError(t, err, name)
		assert.True(t, bytes.Equal(data, got), name)
	}
	z, err := NewReader(bytes.NewReader(packed))
	require.NoError(t, err)
	require.NoError(t, iotest.TestReader(z, data))
}

// hesitant returns nothing every other time, and few bytes.
type hesitant struct {
	r     io.Reader
	times int
}

func (h *hesitant) Read(p []byte) (int, error) {
	if h.times++; h.times%2 == 0 {
		return 0, nil
	}
	return h.r.Read(p[:min(len(p), h.times%37)])
}

// TestSourceErrors passes errors of the source on, after the data before them.
func TestSourceErrors(t *testing.T) {
	boom := errors.New("boom")
	data := sample(1, 300_000)
	packed := packers(t)["go 6"](data)
	for _, n := range []int{0, 5, 10, 1000, len(packed) - 3, len(packed)} {
		got, err := inflated(io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(boom)))
		require.ErrorIs(t, err, boom, "after %d", n)
		assert.True(t, bytes.HasPrefix(data, got))
	}
	_, err := inflated(io.MultiReader(bytes.NewReader(packed[:1000]), stuck{}))
	require.ErrorIs(t, err, io.ErrNoProgress)
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// TestReadsNoFurther reads from a source that sends nothing more until its earlier data has been decoded.
func TestReadsNoFurther(t *testing.T) {
	for name, pack := range packers(t) {
		packed := pack([]byte(strings.Repeat("some words and ", 50)))
		r := &counting{r: bytes.NewReader(packed), left: len(packed)}
		z, err := NewReader(r)
		require.NoError(t, err)
		n, err := z.Read(make([]byte, 15*50))
		require.NoError(t, err, name)
		assert.Positive(t, n, name)
	}
}

// counting gives a byte at a time and fails beyond the end.
type counting struct {
	r    io.Reader
	left int
}

func (c *counting) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	c.left--
	return c.r.Read(p[:1])
}

func TestMembers(t *testing.T) {
	one, other := sample(1, 200_000), sample(2, 400_000)
	var packed, want []byte
	all := packers(t)
	for i, name := range []string{"go 6", "klauspost 1", "go 0", "window 256", "go -2", "go 9"} {
		data := one
		if i%2 == 0 {
			data = other
		}
		packed, want = append(packed, all[name](data)...), append(want, data...)
		packed = append(packed, all[name](nil)...)
	}
	got, err := inflated(bytes.NewReader(packed))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got))
}

// TestWindowEnds refuses a match that reaches into the member before.
func TestWindowEnds(t *testing.T) {
	first := packers(t)["go 6"](sample(1, 100_000))
	var w bitWriter
	w.fixedHeader()
	w.fixedMatch() // of the bytes before the member
	packed := append(bytes.Clone(first), 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255)
	packed = append(packed, w.bytes()...)
	packed = append(packed, make([]byte, 100)...)
	assertAlike(t, packed, "match")
	_, err := inflated(bytes.NewReader(packed))
	assert.Equal(t, "corrupt", class(err))
}

// TestHeaders reads all that a header may hold.
func TestHeaders(t *testing.T) {
	data := []byte("data")
	var deflated bytes.Buffer
	w, err := flate.NewWriter(&deflated, 6)
	require.NoError(t, err)
	_, err = w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	rest := append(deflated.Bytes(), trailer(data)...)

	for flags := range 256 {
		for _, name := range []string{"name\x00", strings.Repeat("n", longestText-1) + "\x00", strings.Repeat("n", longestText) + "\x00"} {
			header := []byte{0x1f, 0x8b, 8, byte(flags), 1, 2, 3, 4, 5, 6}
			if flags&flagExtra != 0 {
				header = append(header, 3, 0, 'a', 0, 'c')
			}
			if flags&flagName != 0 {
				header = append(header, name...)
			}
			if flags&flagComment != 0 {
				header = append(header, "a comm\xe9nt\x00"...)
			}
			bad := bytes.Clone(header)
			if flags&flagHeaderSum != 0 {
				sum := uint16(crc32.ChecksumIEEE(header))
				header = binary.LittleEndian.AppendUint16(header, sum)
				bad = binary.LittleEndian.AppendUint16(bad, sum+1)
			}
			assertAlike(t, append(bytes.Clone(header), rest...), fmt.Sprintf("flags %#x", flags))
			assertAlike(t, append(bad, rest...), fmt.Sprintf("flags %#x and a wrong sum", flags))
			if len(name) < 10 && flags&flagReserved == 0 {
				for n := range header {
					assertAlike(t, header[:n], fmt.Sprintf("flags %#x, %d bytes", flags, n))
					// Behind another member an end is an end no less.
					assertAlike(t, append(append(append([]byte(nil), header...), rest...), header[:n]...), fmt.Sprintf("flags %#x, second, %d bytes", flags, n))
				}
			}
		}
	}
}

// TestTrailing compares the errors for bytes after the last member with those of compress/gzip.
func TestTrailing(t *testing.T) {
	packed := packers(t)["go 6"]([]byte("data"))
	for name, tail := range map[string][]byte{
		"zeros": make([]byte, 1000), "few zeros": make([]byte, 3), "garbage": []byte("something else"), "a short header": {0x1f, 0x8b},
	} {
		assertAlike(t, append(bytes.Clone(packed), tail...), name)
		_, err := inflated(bytes.NewReader(append(bytes.Clone(packed), tail...)))
		require.Error(t, err, name)
	}
}

// TestTruncated cuts streams anywhere.
func TestTruncated(t *testing.T) {
	data := sample(3, 20_000)
	for name, pack := range packers(t) {
		packed := pack(data)
		random := rand.New(rand.NewPCG(1, uint64(len(packed))))
		for range 40 {
			n := random.IntN(len(packed))
			assertAlike(t, packed[:n], fmt.Sprintf("%s, %d bytes", name, n))
		}
	}
}

// TestDamaged changes streams anywhere.
func TestDamaged(t *testing.T) {
	data := sample(4, 30_000)
	classes := make(map[string]int)
	for name, pack := range packers(t) {
		packed := pack(data)
		random := rand.New(rand.NewPCG(2, uint64(len(packed))))
		for range 25 {
			bad := bytes.Clone(packed)
			for range 1 + random.IntN(3) {
				bad[random.IntN(len(bad))] ^= 1 << random.IntN(8)
			}
			assertAlike(t, bad, name)
			_, err := inflated(bytes.NewReader(bad))
			classes[class(err)]++
		}
	}
	for _, want := range []string{"corrupt", "checksum"} {
		assert.Positive(t, classes[want], "%s in %v", want, classes)
	}
}

// FuzzInflate asks for the bytes and the kind of error of compress/gzip, whatever the stream, and however it comes.
func FuzzInflate(f *testing.F) {
	for _, pack := range packers(f) {
		f.Add(pack([]byte("some text, and some text again")), uint16(3))
		f.Add(append(pack(sample(5, 2000)), pack(sample(6, 100))...), uint16(1))
	}
	for seed := range uint64(20) {
		f.Add(randomStream(seed), uint16(100))
	}
	f.Add([]byte("\x1f\x8b\x08\x1e\x01\x02\x03\x04\x05\x06\x02\x00ab"+"name\x00comment\x00"), uint16(0))
	f.Fuzz(func(t *testing.T, packed []byte, step uint16) {
		assertAlike(t, packed, "as it comes")
		want, wantErr := inflated(bytes.NewReader(packed))
		got, err := inflated(&steps{r: bytes.NewReader(packed), n: int(step%300) + 1})
		require.Equal(t, class(wantErr), class(err))
		require.True(t, bytes.Equal(want, got))
	})
}

// steps reads n bytes at a time.
type steps struct {
	r io.Reader
	n int
}

func (s *steps) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.n)]) }
