// Package client calls Cowshed's HTTP API, which "cowshed serve" answers on a unix socket.
//
// Each method is one request, and ends with its context. Package api has the bodies of requests and answers, and
// docs/reference/api.md describes them.
//
// An error that the server answers is an *api.Error, for errors.As: with its kind, its object, and advice. It is also the error of
// package errdefs for its kind, for errors.Is.
//
// A method returns errdefs.ErrUnavailable if no server listens on the socket; nothing was sent then. It returns
// errdefs.ErrUnknown if the connection ends before the answer does. The server may have carried out the request, or it
// may have closed the connection because the caller has too many connections.
package client

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Client calls the API. It is safe for concurrent use.
type Client struct {
	http  http.Client
	token string
}

// Option changes a Client.
type Option func(*Client)

// WithToken sends a token with each request. The server knows callers without a token by the user id of their process.
func WithToken(token string) Option {
	return func(c *Client) { c.token = strings.TrimSpace(token) }
}

// NewClient returns a Client of the server that listens on a unix socket. It connects at the first request.
func NewClient(socket string, options ...Option) *Client {
	dialer := net.Dialer{}
	c := &Client{http: http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, "unix", socket)
				return conn, unavailable(err)
			},
			DisableCompression: true, // a diff has the compression that it was asked with
			IdleConnTimeout:    time.Minute,
		},
		// The API redirects nobody. A redirection is then an answer that is no success.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, option := range options {
		option(c)
	}
	return c
}

// Close closes the connections that no request uses. The Client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// unavailable makes an error of connecting errdefs.ErrUnavailable.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fault.As(errdefs.ErrUnavailable, err)
}
