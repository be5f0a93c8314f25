package layerstream

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Faults of a stream, for errors.Is. Errors with ErrVersion are of the kind errdefs.ErrNotImplemented, and all others of the
// kind errdefs.ErrInvalidArgument. Errors of the underlying reader are passed on.
var (
	// ErrNotStream says that the input does not begin like a stream.
	ErrNotStream = errors.New("not a stream of layers")
	// ErrVersion says that the stream has a version that this package does not know.
	ErrVersion = errors.New("unknown version")
	// ErrTruncated says that the stream ends before its end mark.
	ErrTruncated = errors.New("the stream is cut off: send it again, and wait for its end")
	// ErrDamaged says that a digest is wrong.
	ErrDamaged = errors.New("the stream was damaged on its way, its digest is wrong: send it again")
	// ErrMalformed says that a frame or a header is not of the format.
	ErrMalformed = errors.New("malformed stream")
)

// faulty returns a fault of a stream, with its kind.
func faulty(err error) error {
	if errors.Is(err, ErrVersion) {
		return fault.As(errdefs.ErrNotImplemented, err)
	}
	return fault.As(errdefs.ErrInvalidArgument, err)
}

// malformed returns an ErrMalformed.
func malformed(format string, args ...any) error {
	return faulty(fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...)))
}

// cut turns the end of the input, at any place, into ErrTruncated.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return faulty(ErrTruncated)
	}
	return err
}
