package sendstream

import (
	"errors"
	"fmt"
	"io"
)

// Copy copies a stream from r to w, and expects the end of r after the stream. Without an error it has copied one whole
// stream: lengths and checksums are right, and it ends with its END command. Copy ignores the meaning of commands and
// attributes. Its errors are those of w, and those of a [Reader].
func Copy(w io.Writer, r io.Reader) error {
	stream, err := NewReader(io.TeeReader(r, w))
	if err != nil {
		return err
	}
	for op := Op(0); op != OpEnd; {
		start := stream.offset
		if op, err = stream.read(); err != nil {
			return &Error{Offset: start, Op: op, Err: err}
		}
	}
	switch _, err := stream.r.ReadByte(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return &Error{Offset: stream.offset, Err: fmt.Errorf("%w: bytes after the END command", ErrMalformed)}
}
