// Package fault gives Cowshed's errors one form: an operation, the name of its object, the kind of the error, and its
// cause.
//
//	create layer "web": clone volume from "base": in use: mounts: 1
//
// A kind is an error of github.com/containerd/errdefs or of this package, and is matched with errors.Is. The function
// that finds the fault gives the kind, with [New] or [As]. Functions that pass the error on give the operation, with
// [Wrap]. So each part stands once in a message, however many functions the error has come through.
package fault

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// Kinds that say more than the kind of errdefs that they wrap.
var (
	// ErrInUse means that a volume cannot be changed as a whole, because it has users. It wraps
	// errdefs.ErrFailedPrecondition.
	ErrInUse error = kindError{"in use", errdefs.ErrFailedPrecondition}
	// ErrSealed means that a volume cannot be changed, because it is read-only for good. It wraps
	// errdefs.ErrFailedPrecondition.
	ErrSealed error = kindError{"sealed", errdefs.ErrFailedPrecondition}
)

type kindError struct {
	text string
	is   error
}

// Error implements error.
func (k kindError) Error() string { return k.text }

// Unwrap returns the kind of errdefs below this kind.
func (k kindError) Unwrap() error { return k.is }

// Error is an operation that has failed, or a kind and a cause that still need the name of the operation. Its fields
// may be empty, but not all of them.
type Error struct {
	Op   string // such as "create layer"
	Name string // of the object of the operation
	With string // a second thing in the operation, such as "from" and another name
	Kind error  // nil: the kind of Err
	Err  error  // nil: the kind says all

	said bool // the text of Err says the kind
}

// Error implements error.
func (e *Error) Error() string { return e.text(&Error{}) }

// text returns the message below that of outer, without repeating it. If both are about the same thing, text leaves out
// the name. If their verbs are equal too, as in "create volume" and "create layer", text leaves out the operation.
func (e *Error) text(outer *Error) string {
	var parts []string
	if operation := e.operation(outer); operation != "" {
		parts = append(parts, operation)
	}
	if e.Kind != nil && !e.said {
		parts = append(parts, e.Kind.Error())
	}
	if e.Op != "" || e.Name != "" {
		outer = e
	}
	if cause := textBelow(e.Err, outer); cause != "" {
		parts = append(parts, cause)
	}
	return strings.Join(parts, ": ")
}

func (e *Error) operation(outer *Error) string {
	var words []string
	sameThing := e.Name == outer.Name && e.Name != ""
	if e.Op != "" && !(sameThing && verb(e.Op) == verb(outer.Op)) {
		words = append(words, e.Op)
	}
	if e.Name != "" && !sameThing {
		words = append(words, strconv.Quote(e.Name))
	}
	if e.With != "" {
		words = append(words, e.With)
	}
	return strings.Join(words, " ")
}

func verb(operation string) string {
	first, _, _ := strings.Cut(operation, " ")
	return first
}

// textBelow returns the text of a cause below that of outer.
func textBelow(cause error, outer *Error) string {
	switch cause := cause.(type) { //nolint:errorlint // the error around an inner Error has written it out
	case nil:
		return ""
	case *Error:
		return cause.text(outer)
	case interface{ Unwrap() []error }:
		if inside := cause.Unwrap(); len(inside) == 1 { // errors.Join of an error and of nil
			return textBelow(inside[0], outer)
		}
	}
	return cause.Error()
}

// Unwrap returns the kind, or the cause if there is no kind. It does not return both: errgrpc would send the cause of a
// kind as a second message.
func (e *Error) Unwrap() error {
	if e.Kind != nil {
		return e.Kind
	}
	return e.Err
}

// Is reports whether the cause of a kind matches target, for errors.Is.
func (e *Error) Is(target error) bool { return e.Kind != nil && errors.Is(e.Err, target) }

// As finds the target in the cause of a kind, for errors.As.
func (e *Error) As(target any) bool { return e.Kind != nil && errors.As(e.Err, target) }

// New makes an error of a kind. The text begins with the kind. The format says the cause, and may wrap it with %w. A
// wrapped error may be of the kind already, as for As.
func New(kind error, format string, args ...any) error {
	return As(kind, fmt.Errorf(format, args...))
}

// As returns err as an error of that kind too. The text says the kind, unless err is of that kind already.
func As(kind, err error) error {
	if err == nil || errors.Is(err, kind) {
		return err
	}
	return &Error{Kind: kind, Err: err}
}

// Said makes an error of a kind. The kind is not in the text, which says all by itself.
func Said(kind error, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...), said: true}
}

// Wrap adds the operation that has failed, and the name of its object, to an error. Of nil it makes nil. name may be ""
// if the operation says it.
func Wrap(operation, name string, err error) error { return WrapWith(operation, name, "", err) }

// WrapWith is Wrap with a further word and name, such as "from" and "base" in: clone volume "web" from "base".
func WrapWith(operation, name, with string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: operation, Name: name, With: with, Err: err}
}

// From is the argument with of WrapWith for the source of a copy.
func From(name string) string { return "from " + strconv.Quote(name) }

// To is the argument with of WrapWith for a new name.
func To(name string) string { return "to " + strconv.Quote(name) }

// IsFull reports whether err says that there is no space left, on a filesystem or below a limit.
func IsFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// OfOwnFile gives the error of a file that is in no volume its kind. The kernel says EDQUOT for any quota. Such a file has no
// limit of a volume, so the error is ENOSPC.
func OfOwnFile(err error) error {
	if !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return fmt.Errorf("a quota of the filesystem is reached: %w (%s)", syscall.ENOSPC, err.Error())
}
