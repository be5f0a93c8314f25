package layerstream

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// chunk is the size of the chunks that a Writer writes, but the last.
const chunk = 256 << 10

// Writer writes a stream. It is not safe for concurrent use. After an error, the stream is not whole.
type Writer struct {
	w      io.Writer
	layers int  // that were begun
	over   bool // the last layer was written, or something has failed
	buf    []byte
}

// NewWriter returns a Writer to w. It writes nothing before the first layer.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Parent writes a layer after which others follow. send writes its native stream.
func (w *Writer) Parent(h Header, send func(io.Writer) error) (Written, error) {
	return w.layer(frameParent, h, send)
}

// Layer writes the last layer, and the end of the stream. send writes its native stream.
func (w *Writer) Layer(h Header, send func(io.Writer) error) (Written, error) {
	written, err := w.layer(frameLayer, h, send)
	if err == nil {
		w.over = true
		err = writeFrame(w.w, frameEnd, nil)
	}
	return written, err
}

// Written is a layer that was written.
type Written struct {
	Digest Digest
	Bytes  int64 // of the native stream
}

var errOver = errors.New("layerstream: the stream has ended")

func (w *Writer) layer(frame byte, h Header, send func(io.Writer) error) (written Written, err error) {
	if w.over {
		return written, errOver
	}
	if w.layers == MaxLayers {
		return written, errTooMany
	}
	header, err := h.encode()
	if err != nil {
		return written, fmt.Errorf("layer %.64q: %w", h.Name, err)
	}
	w.over = true // until all has been written
	w.layers++
	if w.layers == 1 {
		if _, err := w.w.Write(append([]byte(Magic), Version)); err != nil {
			return written, err
		}
	}
	c := &chunks{w: w.w, buf: w.buf[:0], sum: begin(frame, header)}
	if err = writeFrame(w.w, frame, header); err == nil {
		err = send(c)
	}
	if err == nil {
		err = c.flush()
	}
	w.buf = c.buf
	if err != nil {
		return written, err
	}
	written = Written{Digest(c.sum.Sum(nil)), c.bytes}
	if err = writeFrame(w.w, frameDigest, written.Digest[:]); err == nil {
		w.over = false
	}
	return written, err
}

// begin returns the hash of a layer, as its header begins it.
func begin(frame byte, header []byte) hash.Hash {
	sum := sha256.New()
	sum.Write([]byte{frame}) // never fails
	sum.Write(header)
	return sum
}

// chunks writes a native stream in frames.
type chunks struct {
	w     io.Writer
	buf   []byte
	sum   hash.Hash
	bytes int64
}

// Write implements io.Writer.
func (c *chunks) Write(p []byte) (n int, err error) {
	if c.buf == nil {
		c.buf = make([]byte, 0, chunk)
	}
	for n < len(p) {
		if len(c.buf) == cap(c.buf) {
			if err := c.flush(); err != nil {
				return n, err
			}
		}
		m := min(len(p)-n, cap(c.buf)-len(c.buf))
		c.buf = append(c.buf, p[n:n+m]...)
		n += m
	}
	return n, nil
}

func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	c.sum.Write(c.buf)
	c.bytes += int64(len(c.buf))
	frame, content := frameData, c.buf
	if len(c.buf) < packBelow {
		if packed, ok := pack(c.buf); ok {
			frame, content = framePacked, packed
		}
	}
	c.buf = c.buf[:0]
	return writeFrame(c.w, frame, content)
}
