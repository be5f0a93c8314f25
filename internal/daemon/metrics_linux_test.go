package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/plugin"
)

func TestOutcome(t *testing.T) {
	for want, err := range map[string]error{
		"ok":                  nil,
		"not_found":           fmt.Errorf("x: %w", errdefs.ErrNotFound),
		"failed_precondition": status.Error(codes.FailedPrecondition, "x"),
		"canceled":            fmt.Errorf("x: %w", context.Canceled),
		"unimplemented":       errdefs.ErrNotImplemented,
		"unknown":             errors.New("x"),
	} {
		assert.Equal(t, want, outcome(err))
	}
}

// TestInterceptors: requests are counted, and a panic is an error of the one request.
func TestInterceptors(t *testing.T) {
	m := newMetrics("test")
	i := interceptors{m, slog.New(slog.DiscardHandler)}
	const service = "/containerd.services.snapshots.v1.Snapshots/"
	call := func(method string, f func() error) error {
		_, err := i.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method},
			func(context.Context, any) (any, error) { return nil, f() })
		return err
	}
	require.NoError(t, call(service+"Prepare", func() error { return nil }))
	notFound := status.Error(codes.NotFound, "x")
	require.ErrorIs(t, call(service+"Prepare", func() error { return notFound }), notFound)
	err := call(service+"Commit", func() error { panic("ouch") })
	assert.Equal(t, codes.Internal, status.Code(err))
	assert.ErrorContains(t, err, "ouch")
	require.NoError(t, call("/grpc.health.v1.Health/Check", func() error { return nil }))
	several := errgrpc.ToGRPC(fmt.Errorf("%w: x", errors.Join(errdefs.ErrNotFound, errors.New("one"), errors.New("two"))))
	err = call(service+"Remove", func() error { return several })
	assert.Equal(t, codes.NotFound, status.Code(err))
	assert.Equal(t, "not found; one; two: x", status.Convert(err).Message())

	assert.Equal(t, []string{
		`cowshed_operations_total{operation="commit",outcome="internal",service="snapshots"} 1`,
		`cowshed_operations_total{operation="prepare",outcome="not_found",service="snapshots"} 1`,
		`cowshed_operations_total{operation="prepare",outcome="ok",service="snapshots"} 1`,
		`cowshed_operations_total{operation="remove",outcome="not_found",service="snapshots"} 1`,
	}, series(m, "cowshed_operations_total"))
	assert.Contains(t, series(m, "cowshed_operations_running"), `cowshed_operations_running{service="snapshots"} 0`)
}

// reader is a diff that ends with an error.
type reader struct {
	io.Reader
	err error
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = r.err
	}
	return n, err
}

func (r reader) Close() error { return nil }

type fakeDocker struct {
	plugin.Driver
	err error
}

func (f fakeDocker) Diff(string, string) io.ReadCloser {
	return reader{strings.NewReader("1234"), f.err}
}

func (f fakeDocker) ApplyDiff(_, _ string, archive io.Reader) (int64, error) {
	return 7, f.err
}

func TestMeasuredDocker(t *testing.T) {
	m := newMetrics("test")
	read := func(err error, whole bool) {
		diff := measuredDocker{fakeDocker{err: err}, m}.Diff("a", "b")
		if whole {
			_, readErr := io.ReadAll(diff)
			if !errors.Is(err, io.EOF) {
				assert.ErrorIs(t, readErr, err)
			}
		}
		require.NoError(t, diff.Close())
		require.NoError(t, diff.Close())
	}
	read(io.EOF, true)
	read(io.EOF, false)
	read(errdefs.ErrNotFound, true)
	_, err := measuredDocker{fakeDocker{err: fmt.Errorf("write: %w", syscall.EDQUOT)}, m}.ApplyDiff("a", "", nil)
	require.Error(t, err)
	_, err = measuredDocker{fakeDocker{}, m}.ApplyDiff("a", "", nil)
	require.NoError(t, err)

	assert.Equal(t, []string{
		`cowshed_operations_total{operation="apply_diff",outcome="ok",service="docker"} 1`,
		`cowshed_operations_total{operation="apply_diff",outcome="unknown",service="docker"} 1`,
		`cowshed_operations_total{operation="diff",outcome="canceled",service="docker"} 1`,
		`cowshed_operations_total{operation="diff",outcome="not_found",service="docker"} 1`,
		`cowshed_operations_total{operation="diff",outcome="ok",service="docker"} 1`,
	}, series(m, "cowshed_operations_total"))
	assert.Equal(t, []string{
		`cowshed_layers_total{direction="applied",service="docker"} 1`,
		`cowshed_layers_total{direction="made",service="docker"} 1`,
	}, series(m, "cowshed_layers_total"))
	assert.Equal(t, []string{
		`cowshed_layer_bytes_total{direction="applied",service="docker"} 7`,
		`cowshed_layer_bytes_total{direction="made",service="docker"} 4`,
	}, series(m, "cowshed_layer_bytes_total"))
	assert.Equal(t, []string{`cowshed_limit_hits_total{limit="quota",service="docker"} 1`}, series(m, "cowshed_limit_hits_total"))
	assert.Contains(t, series(m, "cowshed_operations_running"), `cowshed_operations_running{service="docker"} 0`)
}

// series are the lines of a metric, as they are served.
func series(m *metrics, name string) []string {
	w := httptest.NewRecorder()
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	var lines []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, name+"{") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
