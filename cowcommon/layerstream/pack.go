package layerstream

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
)

// packBelow is the size up to which a Writer compresses a chunk. So the headers of a stream with few changes cost nothing.
const packBelow = 16 << 10

// pack compresses a chunk. ok: that makes it smaller.
func pack(chunk []byte) (packed []byte, ok bool) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err == nil {
		_, err = w.Write(chunk)
	}
	if err == nil {
		err = w.Close()
	}
	return b.Bytes(), err == nil && b.Len() < len(chunk)
}

// unpack decompresses a chunk into buf, and makes that larger if need be.
func unpack(packed, buf []byte) ([]byte, error) {
	in := bytes.NewReader(packed) // an io.ByteReader, of which flate reads no more than it needs
	out := bytes.NewBuffer(buf[:0])
	_, err := io.CopyN(out, flate.NewReader(in), MaxChunk+1)
	switch {
	case err == nil:
		return nil, malformed("a chunk of more than %d bytes", MaxChunk)
	case !errors.Is(err, io.EOF):
		return nil, malformed("a compressed chunk: %v", err)
	case in.Len() > 0 || out.Len() == 0:
		return nil, malformed("a compressed chunk of %d bytes, with %d after it", out.Len(), in.Len())
	}
	return out.Bytes(), nil
}
