package layerstream

import (
	"bytes"
	"errors"
	"io"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// part is a layer of a test.
type part struct {
	header Header
	data   []byte
}

func send(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.Copy(w, iotest.OneByteReader(bytes.NewReader(data[:min(len(data), 10)])))
		if err == nil {
			_, err = w.Write(data[min(len(data), 10):])
		}
		return err
	}
}

// sample is a layer with its parent. The native streams take several chunks.
func sample() []part {
	data := func(n int) []byte {
		b := make([]byte, n)
		r := rand.New(rand.NewPCG(1, uint64(n)))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	return []part{
		{Header{Kind: "btrfs", Name: "base", ID: []byte("0123456789abcdef"), Image: Image{"debian:12", "sha256:0"}}, data(3*chunk + 1)},
		{Header{
			Kind: "btrfs", Name: "web@one", ID: []byte("fedcba9876543210"), Parent: Parent{Name: "base", ID: []byte("0123456789abcdef")},
			Limit: Limit{Bytes: 300, Total: true}, Labels: map[string]string{"": "", "task": "1", "a": " é"},
		}, data(chunk)},
	}
}

func write(t testing.TB, parts []part) []byte {
	t.Helper()
	var out bytes.Buffer
	w := NewWriter(&out)
	for i, p := range parts {
		if i < len(parts)-1 {
			written, err := w.Parent(p.header, send(p.data))
			require.NoError(t, err)
			parts[i+1].header.Parent.Digest = &written.Digest
			continue
		}
		written, err := w.Layer(p.header, send(p.data))
		require.NoError(t, err)
		assert.EqualValues(t, len(p.data), written.Bytes)
	}
	_, err := w.Layer(parts[0].header, send(nil))
	require.ErrorIs(t, err, errOver)
	return out.Bytes()
}

// read reads a stream. With an error it returns the layers until then, the last as far as it was read.
func read(in io.Reader) (parts []part, err error) {
	r, err := NewReader(in)
	if err != nil {
		return nil, err
	}
	for {
		l, err := r.Next()
		if errors.Is(err, io.EOF) {
			return parts, nil
		}
		if err != nil {
			return parts, err
		}
		data, err := io.ReadAll(l)
		parts = append(parts, part{l.Header, data})
		if err != nil {
			return parts, err
		}
		if _, err := l.Digest(); err != nil {
			return parts, err
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for name, parts := range map[string][]part{
		"one": sample()[:1], "two": sample(), "empty": {{header: sample()[1].header}},
	} {
		stream := write(t, parts)
		assert.Equal(t, Framed, Detect(stream))
		for _, in := range []io.Reader{bytes.NewReader(stream), iotest.OneByteReader(bytes.NewReader(stream)), iotest.DataErrReader(bytes.NewReader(stream))} {
			got, err := read(in)
			require.NoError(t, err, name)
			require.Len(t, got, len(parts))
			for i := range parts {
				assert.Equal(t, parts[i].header, got[i].header)
				assert.True(t, bytes.Equal(parts[i].data, got[i].data), name)
			}
		}
	}
}

// TestOverhead: frames and header of a stream of a few changes are small beside it.
func TestOverhead(t *testing.T) {
	h := Header{Kind: "btrfs", Name: "web", ID: make([]byte, 16), Parent: Parent{Name: "base", ID: make([]byte, 16)}}
	random := sample()[0].data[:1000]
	assert.LessOrEqual(t, len(write(t, []part{{h, random}})), 1110, "what cannot be compressed")
	assert.LessOrEqual(t, len(write(t, []part{{h, bytes.Repeat(random[:100], 10)}})), 350)
}

func TestTypes(t *testing.T) {
	types := []byte{frameParent, frameLayer, frameData, framePacked, frameDigest, frameEnd}
	for i, a := range types {
		for _, b := range types[:i] {
			assert.GreaterOrEqual(t, bits.OnesCount8(a^b), 3, "%q %q", a, b)
		}
	}
}

// TestUnpack: a compressed chunk has bounds, and ends with its frame.
func TestUnpack(t *testing.T) {
	for name, chunk := range map[string][]byte{"largest": make([]byte, MaxChunk), "small": []byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")} {
		packed, ok := pack(chunk)
		require.True(t, ok, name)
		got, err := unpack(packed, nil)
		require.NoError(t, err, name)
		assert.True(t, bytes.Equal(chunk, got), name)
		_, err = unpack(append(packed, 0), nil)
		require.ErrorIs(t, err, ErrMalformed, name)
		_, err = unpack(packed[:len(packed)-1], nil)
		require.ErrorIs(t, err, ErrMalformed, name)
	}
	for name, chunk := range map[string][]byte{"too large": make([]byte, MaxChunk+1), "empty": nil} {
		packed, _ := pack(chunk)
		_, err := unpack(packed, nil)
		require.ErrorIs(t, err, ErrMalformed, name)
	}
}

// complete counts the layers whose native streams have come to their ends.
func complete(got []part, want []part) (n int) {
	for i := range got {
		if len(got[i].data) == len(want[i].data) {
			n++
		}
	}
	return n
}

// TestCut: of a stream that is cut off anywhere, the last layer never comes to its end.
func TestCut(t *testing.T) {
	parts := sample()
	stream := write(t, parts)
	places := []int{0, 1, len(Magic), len(Magic) + 1, len(stream) - 1, len(stream) - 2, len(stream) - 3, len(stream) - 36}
	for range 60 {
		places = append(places, rand.IntN(len(stream)))
	}
	for _, n := range places {
		got, err := read(bytes.NewReader(stream[:n]))
		require.ErrorIs(t, err, ErrTruncated, n)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, n)
		assert.LessOrEqual(t, complete(got, parts), 1, n)
	}
}

// TestDamage: no layer comes to its end if a bit of it is another.
func TestDamage(t *testing.T) {
	parts := sample()
	stream := write(t, parts)
	second := bytes.Index(stream, []byte("web@one"))
	places := []int{}
	for n := range 60 {
		places = append(places, n, rand.IntN(len(stream)), second+n-20, len(stream)-1-n)
	}
	bit := rand.IntN(8)
	for _, n := range places {
		damaged := bytes.Clone(stream)
		bit++
		damaged[n] ^= 1 << (bit % 8)
		got, err := read(bytes.NewReader(damaged))
		require.Error(t, err, n)
		var kind error = errdefs.ErrInvalidArgument
		if errors.Is(err, ErrVersion) {
			kind = errdefs.ErrNotImplemented
		}
		require.ErrorIs(t, err, kind, n)
		if n < second-20 {
			assert.Zero(t, complete(got, parts), n)
		} else {
			assert.LessOrEqual(t, complete(got, parts), 1, n)
		}
	}
}

func TestReaderErrors(t *testing.T) {
	stream := write(t, sample())
	broken := errors.New("the network is down")
	_, err := read(io.MultiReader(bytes.NewReader(stream[:1000]), iotest.ErrReader(broken)))
	require.ErrorIs(t, err, broken)
	_, err = read(strings.NewReader("a tar, or whatever else"))
	require.ErrorIs(t, err, ErrNotStream)

	r, err := NewReader(bytes.NewReader(stream))
	require.NoError(t, err)
	l, err := r.Next()
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, l, 10)
	require.NoError(t, err)
	_, err = l.Digest()
	require.ErrorIs(t, err, ErrMalformed, "not at its end")
	_, err = r.Next()
	require.ErrorIs(t, err, ErrMalformed)
	require.ErrorIs(t, r.Err(), ErrMalformed)

	w := NewWriter(io.Discard)
	_, err = w.Layer(sample()[0].header, func(io.Writer) error { return broken })
	require.ErrorIs(t, err, broken)
	_, err = w.Layer(sample()[0].header, send(nil))
	require.ErrorIs(t, err, errOver, "it is not whole")
}

// TestTooMany: the number of layers is bounded.
func TestTooMany(t *testing.T) {
	h := sample()[0].header
	var out bytes.Buffer
	w := NewWriter(&out)
	for range MaxLayers {
		_, err := w.Parent(h, send(nil))
		require.NoError(t, err)
	}
	_, err := w.Layer(h, send(nil))
	require.ErrorIs(t, err, ErrMalformed)
	w.layers = 1
	_, err = w.Layer(h, send(nil))
	require.NoError(t, err)
	got, err := read(&out)
	require.ErrorIs(t, err, ErrMalformed)
	assert.Len(t, got, MaxLayers)
}

func TestBadHeaders(t *testing.T) {
	good := sample()[1].header
	for name, change := range map[string]func(h *Header){
		"no kind":         func(h *Header) { h.Kind = "" },
		"kind":            func(h *Header) { h.Kind = "BTRFS" },
		"no name":         func(h *Header) { h.Name = "" },
		"long name":       func(h *Header) { h.Name = strings.Repeat("x", MaxName+1) },
		"control":         func(h *Header) { h.Name = "a\x1b[2J" },
		"no id":           func(h *Header) { h.ID = nil },
		"long id":         func(h *Header) { h.ID = make([]byte, MaxID+1) },
		"nameless parent": func(h *Header) { h.Parent.Name = "" },
		"parent's id":     func(h *Header) { h.Parent.ID = nil },
		"limit":           func(h *Header) { h.Limit.Bytes = 0 },
		"image":           func(h *Header) { h.Image.Name = "web" },
		"label's key":     func(h *Header) { h.Labels = map[string]string{"\xff": ""} },
		"label's value":   func(h *Header) { h.Labels = map[string]string{"a": "\u009b2J"} },
		"label's end":     func(h *Header) { h.Labels = map[string]string{"a": "b\x7f"} },
		"label's line":    func(h *Header) { h.Labels = map[string]string{"a": "b\n"} },
		"too long":        func(h *Header) { h.Labels = map[string]string{"a": strings.Repeat("x", MaxHeader)} },
	} {
		h := good
		change(&h)
		_, err := NewWriter(io.Discard).Layer(h, send(nil))
		require.ErrorIs(t, err, ErrMalformed, name)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
}

func TestDetect(t *testing.T) {
	zfs := append(make([]byte, 8), 0xac, 0xcb, 0xba, 0xf5, 0x02, 0, 0, 0)
	for begin, want := range map[string]Format{
		"": Unknown, "cowshe": Unknown, "cowshed\x09": Framed, "btrfs-stream\x00": Btrfs, "btrfs-stream\x01aa": Unknown,
		string(zfs): ZFS, string(zfs[:15]): Unknown, string(make([]byte, 16)): Unknown,
		string(append(make([]byte, 8), 0, 0, 0, 0x02, 0xf5, 0xba, 0xcb, 0xac)): ZFS,
	} {
		assert.Equal(t, want, Detect([]byte(begin)), "%q", begin)
	}
	assert.Equal(t, []string{"", "", "btrfs", "zfs"}, []string{Unknown.Kind(), Framed.Kind(), Btrfs.Kind(), ZFS.Kind()})
}

func TestDigestText(t *testing.T) {
	want := Digest{1, 31: 255}
	text, err := want.MarshalText()
	require.NoError(t, err)
	var got Digest
	require.NoError(t, got.UnmarshalText(text))
	assert.Equal(t, want, got)
	for _, bad := range []string{"", "sha256:", "sha512:" + string(text[7:]), string(text) + "0", string(text[:len(text)-1]) + "x"} {
		require.ErrorIs(t, got.UnmarshalText([]byte(bad)), ErrMalformed, bad)
	}
}
