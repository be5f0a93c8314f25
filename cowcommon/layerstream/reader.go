package layerstream

import (
	"bufio"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

// Reader reads a stream. It may have read ahead of the end of the stream.
type Reader struct {
	mu      sync.Mutex
	in      *bufio.Reader
	present *Layer // nil before the first
	layers  int
	err     atomic.Pointer[error]

	// The frame that is next in the input, after its type and size.
	frame byte
	size  int
}

// NewReader reads the beginning of a stream. Returns ErrNotStream, ErrVersion or ErrTruncated if it is none that can be read.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: bufio.NewReaderSize(in, 64<<10)}
	var begin [len(Magic) + 1]byte
	n, err := io.ReadFull(r.in, begin[:])
	switch {
	case string(begin[:min(n, len(Magic))]) != Magic[:min(n, len(Magic))]:
		return nil, faulty(ErrNotStream)
	case err != nil:
		return nil, cut(err)
	case begin[len(Magic)] != Version:
		return nil, faulty(fmt.Errorf("%w %d of the stream: %d is known", ErrVersion, begin[len(Magic)], Version))
	}
	return r, r.head()
}

// head reads the type and size of the next frame.
func (r *Reader) head() (err error) {
	r.frame, r.size, err = readFrameHead(r.in)
	return err
}

// errUnread says that the native stream ends before its frames do.
var errUnread = malformed("it has data after the end of a native stream")

// Next returns the next layer, or io.EOF after the last. The present layer has to be read to its end before. Next is not safe
// for concurrent use.
func (r *Reader) Next() (*Layer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.Err(); err != nil {
		return nil, err
	}
	if l := r.present; l != nil {
		if !l.given.Load() {
			return nil, r.fail(errUnread)
		}
		if l.Last {
			return nil, io.EOF
		}
	}
	r.layers++
	if r.layers > MaxLayers {
		return nil, r.fail(errTooMany)
	}
	l, err := r.layer()
	if err != nil {
		return nil, r.fail(err)
	}
	r.present = l
	return l, nil
}

// layer reads the header of a layer, and the head of the frame after it.
func (r *Reader) layer() (*Layer, error) {
	if r.frame != frameParent && r.frame != frameLayer {
		return nil, malformed("a frame of type %q where a layer begins", r.frame)
	}
	l := &Layer{r: r, Last: r.frame == frameLayer}
	header := make([]byte, r.size)
	if _, err := io.ReadFull(r.in, header); err != nil {
		return nil, cut(err)
	}
	decoded, err := decode(header)
	if err != nil {
		return nil, err
	}
	l.Header, l.sum = *decoded, begin(r.frame, header)
	return l, r.head()
}

// fail keeps the error that ends the stream.
func (r *Reader) fail(err error) error {
	r.err.CompareAndSwap(nil, &err)
	return err
}

// Err is the error that has ended the stream, nil if there is none. It waits for no read.
func (r *Reader) Err() error {
	if err := r.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Layer is a layer of a stream. It is a reader of the layer's native stream, until the next call of Next. Reads are safe for
// concurrent use.
type Layer struct {
	Header Header
	Last   bool // it is no parent of another

	r        *Reader
	sum      hash.Hash
	buf      []byte // the rest of the chunk, which is the last if over is set
	chunk    []byte // reused, as unpacked is
	unpacked []byte
	over     bool // the digest is right, and the frame after it is as it should be

	given  atomic.Bool // all has been read
	bytes  atomic.Int64
	digest Digest
}

// Read implements io.Reader. It returns the last bytes only if the digest is right, and if the next layer or the end of the
// stream follows.
func (l *Layer) Read(p []byte) (int, error) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	if l.given.Load() {
		return 0, io.EOF
	}
	if err := l.r.Err(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if len(l.buf) == 0 {
		if err := l.fill(); err != nil {
			return 0, l.r.fail(err)
		}
	}
	n := copy(p, l.buf)
	l.buf = l.buf[n:]
	l.bytes.Add(int64(n))
	if l.over && len(l.buf) == 0 {
		l.given.Store(true)
		if n == 0 {
			return 0, io.EOF
		}
	}
	return n, nil
}

// fill reads a chunk, and the frames that have to be known before it can be given.
func (l *Layer) fill() error {
	r := l.r
	if isChunk(r.frame) {
		buf, err := l.readChunk()
		if err != nil {
			return err
		}
		l.sum.Write(buf) // never fails
		l.buf = buf
		if err := r.head(); err != nil || isChunk(r.frame) {
			return err
		}
	}
	return l.end()
}

func isChunk(frame byte) bool { return frame == frameData || frame == framePacked }

// readChunk reads a chunk, which is valid until the next call.
func (l *Layer) readChunk() ([]byte, error) {
	packed := l.r.frame == framePacked
	if cap(l.chunk) < l.r.size {
		l.chunk = make([]byte, l.r.size)
	}
	buf := l.chunk[:l.r.size]
	if _, err := io.ReadFull(l.r.in, buf); err != nil {
		return nil, cut(err)
	}
	if !packed {
		return buf, nil
	}
	unpacked, err := unpack(buf, l.unpacked)
	l.unpacked = unpacked
	return unpacked, err
}

// end verifies the digest, and looks at the frame after it.
func (l *Layer) end() error {
	r := l.r
	if r.frame != frameDigest {
		return malformed("a frame of type %q in a layer", r.frame)
	}
	var digest Digest
	if _, err := io.ReadFull(r.in, digest[:]); err != nil {
		return cut(err)
	}
	if l.digest = Digest(l.sum.Sum(nil)); l.digest != digest {
		return faulty(ErrDamaged)
	}
	if err := r.head(); err != nil {
		return err
	}
	if l.Last != (r.frame == frameEnd) {
		return malformed("a frame of type %q after a layer", r.frame)
	}
	l.over = true
	return nil
}

// Skip reads the layer to its end.
func (l *Layer) Skip() error {
	_, err := io.Copy(io.Discard, l)
	return err
}

// Digest is the digest of the layer, which has been read to its end. Otherwise it returns an error.
func (l *Layer) Digest() (Digest, error) {
	switch {
	case l.given.Load():
		return l.digest, nil
	case l.r.Err() != nil:
		return Digest{}, l.r.Err()
	}
	return Digest{}, errUnread
}

// Bytes is how much of the native stream has been read.
func (l *Layer) Bytes() int64 { return l.bytes.Load() }

var _ io.Reader = (*Layer)(nil)
