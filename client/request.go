package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

const (
	// maxAnswer is the longest JSON that is read. The changes of a large layer are long.
	maxAnswer = 1 << 30
	// maxError is the longest body of an error that is read. It can list the conflicts of a merge.
	maxError = 64 << 20

	jsonType = "application/json"
)

// request is a request that is about to be sent.
type request struct {
	method string
	path   []string // segments after api.Prefix
	query  query
	body   any // nil: none
}

// query has the parameters of a request. Empty ones are left out.
type query map[string]string

// flag sets a parameter that is true or false.
func (q query) flag(name string, set bool) query {
	if set {
		q[name] = "true"
	}
	return q
}

// call sends a request, and reads the JSON of the answer into answer unless that is nil.
func (c *Client) call(ctx context.Context, r request, answer any) error {
	body, err := c.stream(ctx, r, "")
	if err != nil {
		return err
	}
	defer body.Close()
	if answer == nil {
		return nil
	}
	limited := io.LimitReader(body, maxAnswer)
	if err := json.NewDecoder(limited).Decode(answer); err != nil {
		return unreadable(ctx, err)
	}
	_, err = io.Copy(io.Discard, limited) // so that the connection is used again
	return err
}

// stream sends a request, and returns the body of the answer, which the caller closes. If a media type is given, the answer has
// it.
func (c *Client) stream(ctx context.Context, r request, mediaType string) (io.ReadCloser, error) {
	req, err := r.build(ctx)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unanswered(ctx, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	if got, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mediaType != "" && got != mediaType {
		resp.Body.Close()
		return nil, fault.New(errdefs.ErrUnknown, "the answer is of the type %q, and not %s: does Cowshed listen on this socket?", got, mediaType)
	}
	return resp.Body, nil
}

// build makes the request of net/http. Returns ErrInvalidArgument for a name that cannot be in a path.
func (r request) build(ctx context.Context) (*http.Request, error) {
	u := url.URL{Scheme: "http", Host: "cowshed", Path: api.Prefix, RawPath: api.Prefix}
	for _, segment := range r.path {
		if segment == "" || segment == "." || segment == ".." {
			return nil, fault.New(errdefs.ErrInvalidArgument, "%q is the name of no layer or snapshot", segment)
		}
		u.Path += "/" + segment
		u.RawPath += "/" + url.PathEscape(segment)
	}
	values := make(url.Values)
	for name, value := range r.query {
		if value != "" {
			values.Set(name, value)
		}
	}
	u.RawQuery = values.Encode()
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, fault.As(errdefs.ErrInvalidArgument, err)
	}
	if r.body != nil {
		req.Header.Set("Content-Type", jsonType)
	}
	return req, nil
}

// readError reads the error of an answer. An answer that has none is an error all the same.
func readError(resp *http.Response) error {
	e := &api.Error{}
	err := json.NewDecoder(io.LimitReader(resp.Body, maxError)).Decode(e)
	if err == nil && e.Kind != "" {
		return e
	}
	return &api.Error{
		Kind:    api.KindUnknown,
		Message: "the answer has the status " + strconv.Itoa(resp.StatusCode) + " and no error of Cowshed: does Cowshed listen on this socket?",
	}
}

// unanswered describes a request that has no answer. Unless nothing was sent, the server may have done it.
func unanswered(ctx context.Context, err error) error {
	if ctx.Err() != nil || errdefs.IsUnavailable(err) {
		return err
	}
	return fault.As(errdefs.ErrUnknown, err)
}

// unreadable describes an answer that is not JSON of the API, or that was cut off.
func unreadable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fault.As(errdefs.ErrUnknown, fmt.Errorf("read answer: %w", err))
}

// layerPath is the path of a layer, or of a part of it.
func layerPath(layer string, part ...string) []string {
	return append([]string{"layers", layer}, part...)
}
