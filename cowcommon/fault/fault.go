// Package fault is the one form of Cowshed's errors: an operation, the thing that it was to be done to, the kind of the
// error, and its cause.
//
//	create layer "web": clone volume from "base": in use: mounts: 1
//
// A kind is an error of github.com/containerd/errdefs or one below, and is matched with errors.Is. Whoever finds out what
// is wrong says the kind, with [New] or [As]. Whoever passes the error on says the operation, with [Wrap]. So each of them
// stands once in a message, however many functions the error has come through.
package fault

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// Kinds that say more than the one of errdefs that each of them is.
var (
	// ErrInUse is an errdefs.ErrFailedPrecondition: somebody uses what was to be changed as a whole.
	ErrInUse error = kindError{"in use", errdefs.ErrFailedPrecondition}
	// ErrSealed is an errdefs.ErrFailedPrecondition: what was to be changed is read-only for good.
	ErrSealed error = kindError{"sealed", errdefs.ErrFailedPrecondition}
)

type kindError struct {
	text string
	is   error
}

// Error implements error.
func (k kindError) Error() string { return k.text }

// Unwrap returns the kind that it is one of.
func (k kindError) Unwrap() error { return k.is }

// Error is an operation that has failed, or a kind and a cause that an operation is still to be named for. Its fields may
// be empty, but not all.
type Error struct {
	Op   string // such as "create layer"
	Name string // of the thing that it was to be done to
	With string // what else the operation is about, such as "from" and another name
	Kind error  // nil: that of Err
	Err  error  // nil: there is no more to say than the kind
}

// Error implements error.
func (e *Error) Error() string { return e.text(&Error{}) }

// text is the message below one that says what outer does. It does not say that again: of an operation on the same thing
// the name is left out, and all of it where it is the same by its first word, as "create volume" is for "create layer".
func (e *Error) text(outer *Error) string {
	var parts []string
	if operation := e.operation(outer); operation != "" {
		parts = append(parts, operation)
	}
	if e.Kind != nil {
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

// textBelow is the text of a cause below what outer says.
func textBelow(cause error, outer *Error) string {
	switch cause := cause.(type) { //nolint:errorlint // an Error further inside has been written out by what is around it
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

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	var inside []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			inside = append(inside, err)
		}
	}
	return inside
}

// New makes an error of a kind, which its text begins with. The format says the cause, and may wrap it with %w. What is
// wrapped may be of the kind already, as for As.
func New(kind error, format string, args ...any) error {
	return As(kind, fmt.Errorf(format, args...))
}

// As returns err as one of a kind too. It says so unless err is of that kind already.
func As(kind, err error) error {
	if err == nil || errors.Is(err, kind) {
		return err
	}
	return &Error{Kind: kind, Err: err}
}

// Said makes an error of a kind whose own text says all.
func Said(kind error, format string, args ...any) error {
	return saidError{fmt.Errorf(format, args...), kind}
}

type saidError struct {
	error
	kind error
}

// Unwrap returns what the message was made from, and the kind.
func (s saidError) Unwrap() []error { return []error{s.error, s.kind} }

// Wrap says of an error, unless it is nil, which operation has failed on what. name may be "" if the operation says it.
func Wrap(operation, name string, err error) error { return WrapWith(operation, name, "", err) }

// WrapWith is Wrap with a further word and name, such as "from" and "base" in: clone volume "web" from "base".
func WrapWith(operation, name, with string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: operation, Name: name, With: with, Err: err}
}

// From is what WrapWith takes for what something is made from.
func From(name string) string { return "from " + strconv.Quote(name) }

// To is what WrapWith takes for what something becomes.
func To(name string) string { return "to " + strconv.Quote(name) }

// IsFull reports whether err says that there is no space left, on a filesystem or below a limit.
func IsFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
