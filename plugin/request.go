package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// maxMessage bounds the JSON of a request, in bytes. The largest that engines send have a few storage
// options or ranges of ids.
const maxMessage = 1 << 20

// requestError is an error of the engine's, with its HTTP status.
type requestError struct {
	status int
	err    error
}

func (e *requestError) Error() string { return e.err.Error() }

func (e *requestError) Unwrap() error { return e.err }

func badRequest(format string, args ...any) error {
	return &requestError{http.StatusBadRequest, fault.As(errdefs.ErrInvalidArgument, fmt.Errorf(format, args...))}
}

// status is the status of HTTP that an error is answered with.
func status(err error) int {
	if malformed := (*requestError)(nil); errors.As(err, &malformed) {
		return malformed.status
	}
	return http.StatusInternalServerError
}

// decode reads the single JSON object of a request's body. It reads the body to its end: otherwise the server does
// not notice that the client has gone.
func decode(w http.ResponseWriter, r *http.Request, message any) error {
	body := http.MaxBytesReader(w, r.Body, maxMessage)
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(message)
	if err == nil {
		if _, err = decoder.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = errors.New("data after the JSON object")
		}
	} else if errors.Is(err, io.EOF) {
		err = errors.New("empty")
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &requestError{
			http.StatusRequestEntityTooLarge,
			fault.New(errdefs.ErrInvalidArgument, "the request has more than %d bytes", tooLarge.Limit),
		}
	}
	return badRequest("invalid request body: %w", err)
}

// decodeFor reads a request about a layer, whose ID is in the message.
func decodeFor(w http.ResponseWriter, r *http.Request, message any, id *string) error {
	if err := decode(w, r, message); err != nil {
		return err
	}
	return checkID(*id)
}

// decodeNothing reads the body of a request that has no arguments: an empty object, or nothing.
func decodeNothing(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength == 0 {
		return nil
	}
	return decode(w, r, &struct{}{})
}

// checkID reports whether the request names a layer. The driver decides which ids are valid.
func checkID(id string) error {
	if id == "" {
		return badRequest("the request names no layer")
	}
	return nil
}

// applyDiffRequest reads the query of ApplyDiff.
func applyDiffRequest(r *http.Request) (ApplyDiffRequest, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return ApplyDiffRequest{}, badRequest("query: %w", err)
	}
	for name, values := range query {
		if name != "id" && name != "parent" || len(values) != 1 {
			return ApplyDiffRequest{}, badRequest("query: id and parent are expected, once each, but there is %q %d times", name, len(values))
		}
	}
	request := ApplyDiffRequest{Stream: r.Body, ID: query.Get("id"), Parent: query.Get("parent")}
	return request, checkID(request.ID)
}
