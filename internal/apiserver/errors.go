package apiserver

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/layerstore"
)

// kindOf is the kind of an error. Where an error is of several kinds of errdefs, the first one of these counts, as for the exit
// codes of the command.
func kindOf(err error) api.Kind {
	var said *api.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &said):
		return said.Kind
	case errors.As(err, &tooLarge):
		return api.KindTooLarge
	case errdefs.IsInvalidArgument(err):
		return api.KindInvalidArgument
	case errdefs.IsConflict(err):
		return api.KindConflict
	case errdefs.IsNotFound(err):
		return api.KindNotFound
	case errdefs.IsAlreadyExists(err):
		return api.KindAlreadyExists
	case fault.IsFull(err), errdefs.IsResourceExhausted(err):
		return api.KindResourceExhausted
	case errdefs.IsFailedPrecondition(err), errors.Is(err, syscall.EROFS):
		return api.KindFailedPrecondition
	case errdefs.IsNotImplemented(err), graphdriver.IsDriverNotSupported(err):
		return api.KindNotImplemented
	case errdefs.IsPermissionDenied(err), errors.Is(err, fs.ErrPermission):
		return api.KindPermissionDenied
	case errdefs.IsAborted(err):
		return api.KindAborted
	case errdefs.IsUnavailable(err):
		return api.KindUnavailable
	case errdefs.IsDataLoss(err):
		return api.KindDataLoss
	case errors.Is(err, context.Canceled):
		return api.KindCancelled
	case errors.Is(err, context.DeadlineExceeded):
		return api.KindDeadlineExceeded
	}
	return api.KindUnknown
}

// errorOf describes an error of a request about an object, which may be "".
func errorOf(err error, object string) *api.Error {
	e := &api.Error{Kind: kindOf(err), Object: object, Message: err.Error()}
	var said *api.Error
	if errors.As(err, &said) {
		e.Advice = said.Advice
	}
	var conflict *conflictError
	if errors.As(err, &conflict) {
		e.Into, e.Conflicts = conflict.into, layerstore.Conflicts(conflict.Conflicts)
	}
	if e.Advice == "" {
		e.Advice = layerstore.Advice(err)
	}
	if e.Advice == "" {
		e.Advice = advice[e.Kind]
	}
	return e
}

// advice is for errors whose message says no more.
var advice = map[api.Kind]string{
	api.KindUnauthenticated:  "send the content of the file api_token_file as bearer token, or no header Authorization",
	api.KindPermissionDenied: "GET /v1/info lists the namespaces of the caller; fork a layer that one of them may read",
	api.KindConflict:         "choose a strategy, or paths of which the fork's state is taken",
	api.KindAborted:          "send the request again",
	api.KindTooManyRequests:  "wait until an earlier request has ended",
	api.KindUnavailable:      "send the request again later",
}

// refused is an error of a kind that the API alone has, or that no function below has said.
func refused(kind api.Kind, message, advice string) error {
	return &api.Error{Kind: kind, Message: message, Advice: advice}
}
