package api

import (
	"context"
	"net/http"

	"github.com/containerd/errdefs"
)

// Kind is the kind of an error. docs/reference/errors.md lists the kinds.
type Kind string

// The kinds. Each has one HTTP status: see Kind.Status.
const (
	KindInvalidArgument    Kind = "invalid_argument"    // a name, size, option or body is malformed
	KindUnauthenticated    Kind = "unauthenticated"     // the token is wrong
	KindPermissionDenied   Kind = "permission_denied"   // the caller may not do that
	KindNotFound           Kind = "not_found"           // the layer, snapshot, image or path does not exist
	KindMethodNotAllowed   Kind = "method_not_allowed"  // the path exists, for other methods
	KindAlreadyExists      Kind = "already_exists"      // the name is taken
	KindFailedPrecondition Kind = "failed_precondition" // the layer is in use, sealed or part of an image
	KindConflict           Kind = "conflict"            // both sides of a merge have changed the same paths
	KindAborted            Kind = "aborted"             // another change came first: try again
	KindTooLarge           Kind = "too_large"           // the body is longer than the server reads
	KindTooManyRequests    Kind = "too_many_requests"   // the caller has too many requests under way: try again
	KindNotImplemented     Kind = "unimplemented"       // the filesystem, kernel or server has no such function
	KindUnavailable        Kind = "unavailable"         // the server has too many requests under way, its store is not open yet, or it is about to end
	KindResourceExhausted  Kind = "resource_exhausted"  // the filesystem is full, or a limit is reached
	KindDataLoss           Kind = "data_loss"           // stored data is damaged
	KindCancelled          Kind = "cancelled"           // the request was given up
	KindDeadlineExceeded   Kind = "deadline_exceeded"   // something did not answer in time
	KindUnknown            Kind = "unknown"             // another failure
)

var kinds = map[Kind]struct {
	status int
	err    error
}{
	KindInvalidArgument:    {http.StatusBadRequest, errdefs.ErrInvalidArgument},
	KindUnauthenticated:    {http.StatusUnauthorized, errdefs.ErrUnauthenticated},
	KindPermissionDenied:   {http.StatusForbidden, errdefs.ErrPermissionDenied},
	KindNotFound:           {http.StatusNotFound, errdefs.ErrNotFound},
	KindMethodNotAllowed:   {http.StatusMethodNotAllowed, errdefs.ErrInvalidArgument},
	KindAlreadyExists:      {http.StatusConflict, errdefs.ErrAlreadyExists},
	KindFailedPrecondition: {http.StatusConflict, errdefs.ErrFailedPrecondition},
	KindConflict:           {http.StatusConflict, errdefs.ErrConflict},
	KindAborted:            {http.StatusConflict, errdefs.ErrAborted},
	KindTooLarge:           {http.StatusRequestEntityTooLarge, errdefs.ErrOutOfRange},
	KindTooManyRequests:    {http.StatusTooManyRequests, errdefs.ErrResourceExhausted},
	KindNotImplemented:     {http.StatusNotImplemented, errdefs.ErrNotImplemented},
	KindUnavailable:        {http.StatusServiceUnavailable, errdefs.ErrUnavailable},
	KindResourceExhausted:  {http.StatusInsufficientStorage, errdefs.ErrResourceExhausted},
	KindDataLoss:           {http.StatusInternalServerError, errdefs.ErrDataLoss},
	KindCancelled:          {http.StatusServiceUnavailable, context.Canceled},
	KindDeadlineExceeded:   {http.StatusGatewayTimeout, context.DeadlineExceeded},
	KindUnknown:            {http.StatusInternalServerError, errdefs.ErrUnknown},
}

// Status is the HTTP status of errors of this kind. An unknown kind has the status of KindUnknown.
func (k Kind) Status() int {
	if known, ok := kinds[k]; ok {
		return known.status
	}
	return http.StatusInternalServerError
}

// Error is the body of each answer that is not a success.
type Error struct {
	Kind    Kind   `json:"kind"`
	Object  string `json:"object,omitempty"` // the layer, snapshot or image that the request named
	Message string `json:"message"`
	Advice  string `json:"advice,omitempty"` // what to do about it
	// Into and Conflicts describe a merge, for KindConflict.
	Into      string     `json:"into,omitempty"`
	Conflicts []Conflict `json:"conflicts,omitempty"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the error of package errdefs for the kind, so that errors.Is finds it.
func (e *Error) Unwrap() error {
	if known, ok := kinds[e.Kind]; ok {
		return known.err
	}
	return errdefs.ErrUnknown
}
