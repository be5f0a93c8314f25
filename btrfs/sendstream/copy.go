package sendstream

import (
	"errors"
	"fmt"
	"io"
)

// Copy copies a stream from r, which ends with it, to w. Without an error it was one whole stream: lengths and
// checksums are right, and it ends with its END command. What commands and attributes mean is not looked at. Errors
// are those of w, and as for a [Reader].
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
