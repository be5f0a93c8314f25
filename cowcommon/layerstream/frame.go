package layerstream

import (
	"encoding/binary"
	"io"
)

// Magic begins each stream, and Version follows it.
const (
	Magic   = "cowshed"
	Version = 1
)

// Bounds of a stream.
const (
	MaxLayers = 1000
	MaxChunk  = 1 << 20 // the largest chunk of a native stream, in bytes
)

// errTooMany says that a stream has too many layers.
var errTooMany = malformed("more than %d layers", MaxLayers)

// Types of frames. Each begins with its type and the number of bytes that follow. A damaged type is another type only if at least
// three bits of it have changed: otherwise a damaged digest could pass for a chunk, and the chunk before it would be given.
const (
	frameParent byte = 'p' // the header of a parent, after which other layers follow
	frameLayer  byte = 'l' // the header of the last layer
	frameData   byte = 'c' // a chunk of a native stream
	framePacked byte = 'Z' // the same, compressed
	frameDigest byte = '6' // ends a layer
	frameEnd    byte = 'E' // ends the stream
)

// checkSize returns an ErrMalformed if a frame of that type cannot have that size.
func checkSize(frame byte, size uint64) error {
	var fits bool
	switch frame {
	case frameParent, frameLayer:
		fits = size > 0 && size <= MaxHeader
	case frameData, framePacked:
		fits = size > 0 && size <= MaxChunk
	case frameDigest:
		fits = size == uint64(len(Digest{}))
	case frameEnd:
		fits = size == 0
	default:
		return malformed("a frame of type %q", frame)
	}
	if !fits {
		return malformed("a frame of type %q with %d bytes", frame, size)
	}
	return nil
}

// readFrameHead reads the type and the size of a frame.
func readFrameHead(r io.ByteReader) (frame byte, size int, err error) {
	if frame, err = r.ReadByte(); err != nil {
		return 0, 0, cut(err)
	}
	var b []byte
	for more := true; more; {
		if len(b) == 3 { // as many as MaxChunk needs
			return 0, 0, malformed("a frame of type %q is too large", frame)
		}
		c, err := r.ReadByte()
		if err != nil {
			return 0, 0, cut(err)
		}
		b = append(b, c)
		more = c&0x80 != 0
	}
	n, _, err := uvarint(b)
	if err == nil {
		err = checkSize(frame, n)
	}
	return frame, int(n), err
}

// writeFrame writes a frame.
func writeFrame(w io.Writer, frame byte, content []byte) error {
	if _, err := w.Write(binary.AppendUvarint([]byte{frame}, uint64(len(content)))); err != nil {
		return err
	}
	if len(content) == 0 {
		return nil
	}
	_, err := w.Write(content)
	return err
}
