package sendstream

import (
	"errors"
	"fmt"
	"io"
)

// Faults of a stream, for errors.Is. A stream that ends before its END command is io.ErrUnexpectedEOF. Errors of the
// underlying reader are passed on.
var (
	// ErrNotStream says that the input does not begin like a send stream.
	ErrNotStream = errors.New("not a btrfs send stream")
	// ErrVersion says that the stream has a version that this package does not know.
	ErrVersion = errors.New("unknown stream version")
	// ErrUnknownCommand says that the stream has a command that this package does not know. Its number is
	// the Op of the [*Error].
	ErrUnknownCommand = errors.New("unknown command")
	// ErrUnknownAttribute says that a command has an attribute that this package does not know. Such an attribute may
	// change the meaning of the command.
	ErrUnknownAttribute = errors.New("unknown attribute")
	// ErrChecksum says that a command's checksum is wrong.
	ErrChecksum = errors.New("wrong checksum")
	// ErrTooLong says that a command is longer than its stream version allows, or than [MaxCommandSize].
	ErrTooLong = errors.New("command too long")
	// ErrMalformed says that the attributes of a command do not fit the command.
	ErrMalformed = errors.New("malformed")
)

// Error is a fault of a stream, and its place.
type Error struct {
	Offset int64 // of the command in the stream, in bytes; 0 for the stream's header
	Op     Op    // the command; 0 if its header has not been read
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Op == 0 {
		return fmt.Sprintf("btrfs send stream: offset %d: %v", e.Offset, e.Err)
	}
	return fmt.Sprintf("btrfs send stream: offset %d: %v: %v", e.Offset, e.Op, e.Err)
}

// Unwrap returns the fault.
func (e *Error) Unwrap() error { return e.Err }

// malformed returns an ErrMalformed about an attribute.
func malformed(a Attr, format string, args ...any) error {
	return fmt.Errorf("%w: attribute %v %s", ErrMalformed, a, fmt.Sprintf(format, args...))
}

// truncated turns the end of the input, at any place, into io.ErrUnexpectedEOF.
func truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
