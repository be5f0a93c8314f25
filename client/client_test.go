package client

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/testfs"
)

// serve answers requests on a socket with a handler, and returns a Client of it.
func serve(t *testing.T, handler http.HandlerFunc, options ...Option) *Client {
	t.Helper()
	// The path of a socket must be short.
	dir, err := os.MkdirTemp("", "cowshed-client-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(handler)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	c := NewClient(socket, options...)
	t.Cleanup(c.Close)
	return c
}

// sent is a request as a server sees it.
type sent struct {
	request string // method, path with its escapes, and query
	body    string
	token   string
	accepts string // compressions
}

// calls are one call or more of each operation of the API, with the request that it sends, and an answer.
var calls = []struct {
	operation  string
	request    string
	body       string
	status     int
	answerType string
	answer     string
	call       func(ctx context.Context, c *Client) (any, error)
	want       any
}{
	{
		"GET /v1/openapi.yaml", "GET /v1/openapi.yaml", "", 200, "application/yaml", "openapi: 3.1.0",
		func(ctx context.Context, c *Client) (any, error) { return c.Description(ctx) }, []byte("openapi: 3.1.0"),
	}, {
		"GET /v1/info", "GET /v1/info", "", 200, jsonType, `{"version":"1","uid":7,"admin":false,"namespaces":[{"name":"a","prefix":"a.","readable":[]}],"new":1}`,
		func(ctx context.Context, c *Client) (any, error) { return c.Info(ctx) },
		api.Info{Version: "1", UID: 7, Namespaces: []api.Namespace{{Name: "a", Prefix: "a.", Readable: []string{}}}},
	}, {
		"GET /v1/layers", "GET /v1/layers", "", 200, jsonType, `{"layers":[{"name":"web"}]}`,
		func(ctx context.Context, c *Client) (any, error) { return c.ListLayers(ctx) }, []api.Layer{{Name: "web"}},
	}, {
		"GET /v1/layers", "GET /v1/layers?forks=true", "", 200, jsonType, `{"layers":[]}`,
		func(ctx context.Context, c *Client) (any, error) { return c.ListContainerForks(ctx) }, []api.Layer{},
	}, {
		"POST /v1/layers", "POST /v1/layers", `{"name":"web","parent":"debian:12","size":"1G"}`, 201, jsonType, `{"name":"web","parent":"debian:12"}`,
		func(ctx context.Context, c *Client) (any, error) {
			return c.CreateLayer(ctx, api.NewLayer{Name: "web", Parent: "debian:12", Size: "1G"})
		}, api.Layer{Name: "web", Parent: "debian:12"},
	}, {
		"GET /v1/layers/{layer}", "GET /v1/layers/containerd:k8s.io%2Fa%20b%3F", "", 200, jsonType, `{"name":"web"}`,
		func(ctx context.Context, c *Client) (any, error) { return c.GetLayer(ctx, "containerd:k8s.io/a b?") }, api.Layer{Name: "web"},
	}, {
		"DELETE /v1/layers/{layer}", "DELETE /v1/layers/web", "", 204, "", "",
		func(ctx context.Context, c *Client) (any, error) { return nil, c.RemoveLayer(ctx, "web") }, nil,
	}, {
		"DELETE /v1/layers/{layer}", "DELETE /v1/layers/web?force=true", "", 204, "", "",
		func(ctx context.Context, c *Client) (any, error) { return nil, c.ForceRemoveLayer(ctx, "web") }, nil,
	}, {
		"POST /v1/layers/{layer}/forks", "POST /v1/layers/web@before/forks", `{"name":"try","count":2,"ttl":"2h","labels":{"a":"b"}}`, 201, jsonType,
		`{"forks":[{"name":"try-1"},{"name":"try-2"}]}`,
		func(ctx context.Context, c *Client) (any, error) {
			return c.Fork(ctx, "web@before", api.NewForks{Name: "try", Count: 2, TTL: "2h", Labels: map[string]string{"a": "b"}})
		}, []api.Fork{{Name: "try-1"}, {Name: "try-2"}},
	}, {
		"GET /v1/layers/{layer}/snapshots", "GET /v1/layers/web/snapshots", "", 200, jsonType, `{"snapshots":[{"name":"before","layer":"web"}]}`,
		func(ctx context.Context, c *Client) (any, error) { return c.ListSnapshots(ctx, "web") }, []api.Snapshot{{Name: "before", Layer: "web"}},
	}, {
		"POST /v1/layers/{layer}/snapshots", "POST /v1/layers/web/snapshots", `{"name":"before","message":"m"}`, 201, jsonType, `{"name":"before"}`,
		func(ctx context.Context, c *Client) (any, error) {
			return c.TakeSnapshot(ctx, "web", api.NewSnapshot{Name: "before", Message: "m"})
		}, api.Snapshot{Name: "before"},
	}, {
		"DELETE /v1/layers/{layer}/snapshots/{snapshot}", "DELETE /v1/layers/web/snapshots/before", "", 204, "", "",
		func(ctx context.Context, c *Client) (any, error) { return nil, c.RemoveSnapshot(ctx, "web", "before") }, nil,
	}, {
		"POST /v1/layers/{layer}/rollback", "POST /v1/layers/web/rollback", `{"snapshot":"before","live":true}`, 200, jsonType, `{"name":"before-rollback-1"}`,
		func(ctx context.Context, c *Client) (any, error) {
			return c.RollBack(ctx, "web", api.NewRollback{Snapshot: "before", Live: true})
		}, api.Snapshot{Name: "before-rollback-1"},
	}, {
		"POST /v1/layers/{layer}/merge", "POST /v1/layers/try-1/merge", `{"strategy":"theirs"}`, 200, jsonType,
		`{"into":"web","changes":[{"kind":"A","path":"/a"}],"conflicts":[],"before":"before-merge-1"}`,
		func(ctx context.Context, c *Client) (any, error) {
			return c.Merge(ctx, "try-1", api.NewMerge{Strategy: api.Theirs})
		}, api.Merge{Into: "web", Changes: []api.Change{{Kind: api.Added, Path: "/a"}}, Conflicts: []api.Conflict{}, Before: "before-merge-1"},
	}, {
		"GET /v1/layers/{layer}/changes", "GET /v1/layers/web/changes?since=web%40before&walk=true", "", 200, jsonType, `{"native":true,"changes":[]}`,
		func(ctx context.Context, c *Client) (any, error) {
			return c.ListChanges(ctx, "web", CompareOptions{Since: "web@before", Walk: true})
		}, api.Changes{Native: true, Changes: []api.Change{}},
	}, {
		"GET /v1/layers/{layer}/diff", "GET /v1/layers/web/diff?compress=zstd&whole=true", "", 200, api.MediaTypeTar, "a tar",
		func(ctx context.Context, c *Client) (any, error) {
			return readAll(c.Diff(ctx, "web", CompareOptions{Whole: true}, "zstd"))
		}, "a tar",
	}, {
		"GET /v1/layers/{layer}/log", "GET /v1/layers/web/log", "", 200, jsonType, `{"name":"web","moments":[{"name":"before","volume":"v"}]}`,
		func(ctx context.Context, c *Client) (any, error) { return c.GetLog(ctx, "web") },
		api.Log{Name: "web", Moments: []api.Moment{{Name: "before", Volume: "v"}}},
	}, {
		"GET /v1/layers/{layer}/usage", "GET /v1/layers/web/usage", "", 200, jsonType, `{"name":"web","bytes":3}`,
		func(ctx context.Context, c *Client) (any, error) { return c.GetUsage(ctx, "web") }, api.Usage{Name: "web", Bytes: 3},
	}, {
		"PUT /v1/layers/{layer}/limit", "PUT /v1/layers/web/limit", `{"size":"none"}`, 204, "", "",
		func(ctx context.Context, c *Client) (any, error) { return nil, c.SetLimit(ctx, "web", "none") }, nil,
	}, {
		"GET /v1/layers/{layer}/export", "GET /v1/layers/web/export?compress=none&format=oci-archive&name=web%3A1", "", 200, api.MediaTypeTar, "an image",
		func(ctx context.Context, c *Client) (any, error) {
			return readAll(c.Export(ctx, "web", ExportOptions{Format: "oci-archive", Name: "web:1", Compress: "none"}))
		}, "an image",
	}, {
		"GET /v1/layers/{layer}/stream", "GET /v1/layers/web/stream?from=debian&withParents=true", "", 200, api.MediaTypeStream, "layers",
		func(ctx context.Context, c *Client) (any, error) {
			return readAll(c.Send(ctx, "web", SendOptions{From: "debian", WithParents: true}))
		}, "layers",
	}, {
		"POST /v1/layers/{layer}/promote", "POST /v1/layers/web/promote", `{"to":"web:1"}`, 200, api.MediaTypeProgress,
		`{"task":"write","bytes":1,"total":2}` + "\n" + `{"image":{"name":"web:1","id":"sha256:1","diffIDs":[]}}` + "\n",
		func(ctx context.Context, c *Client) (any, error) {
			return c.Promote(ctx, "web", api.NewImage{To: "web:1"}, nil)
		}, api.Image{Name: "web:1", ID: "sha256:1", DiffIDs: []string{}},
	},
}

func readAll(r io.ReadCloser, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func TestRequests(t *testing.T) {
	for _, call := range calls {
		t.Run(call.request, func(t *testing.T) {
			var got sent
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				assert.NoError(t, err)
				got = sent{r.Method + " " + r.RequestURI, string(body), r.Header.Get("Authorization"), r.Header.Get("Accept-Encoding")}
				if call.answerType != "" {
					w.Header().Set("Content-Type", call.answerType)
				}
				w.WriteHeader(call.status)
				_, _ = io.WriteString(w, call.answer)
			}, WithToken("secret\n"))
			result, err := call.call(t.Context(), c)
			require.NoError(t, err)
			assert.Equal(t, call.want, result)
			assert.Equal(t, sent{request: call.request, body: call.body, token: "Bearer secret"}, got)
		})
	}
}

var (
	pathLine   = regexp.MustCompile(`^  (/v1/\S*):$`)
	methodLine = regexp.MustCompile(`^    (get|put|post|delete|patch|head):$`)
)

// TestOperations: the Client has each operation of the description, and no other.
func TestOperations(t *testing.T) {
	var described, tested []string
	path := ""
	for line := range strings.Lines(string(api.OpenAPI)) {
		line = strings.TrimRight(line, "\n")
		if match := pathLine.FindStringSubmatch(line); match != nil {
			path = match[1]
		} else if match := methodLine.FindStringSubmatch(line); match != nil {
			described = append(described, strings.ToUpper(match[1])+" "+path)
		}
	}
	for _, call := range calls {
		tested = append(tested, call.operation)
	}
	slices.Sort(described)
	slices.Sort(tested)
	assert.Equal(t, described, slices.Compact(tested))
}

func TestErrors(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		body   string
		kind   error
		want   *api.Error
	}{
		"of the server": {
			409, `{"kind":"conflict","object":"try","message":"both","advice":"do","into":"web","conflicts":[{"path":"/a","fork":"C","layer":"D"}],"later":1}`,
			errdefs.ErrConflict,
			&api.Error{
				Kind: api.KindConflict, Object: "try", Message: "both", Advice: "do", Into: "web",
				Conflicts: []api.Conflict{{Path: "/a", Fork: api.Modified, Layer: api.Deleted}},
			},
		},
		"of a later kind": {418, `{"kind":"later","message":"m"}`, errdefs.ErrUnknown, &api.Error{Kind: "later", Message: "m"}},
		"of another program": {
			500, "<html>", errdefs.ErrUnknown,
			&api.Error{Kind: api.KindUnknown, Message: "the answer has the status 500 and no error of Cowshed: does Cowshed listen on this socket?"},
		},
		"redirection": {
			301, "{}", errdefs.ErrUnknown,
			&api.Error{Kind: api.KindUnknown, Message: "the answer has the status 301 and no error of Cowshed: does Cowshed listen on this socket?"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/v1/elsewhere")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			})
			ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
			defer cancel()
			for _, call := range calls {
				_, err := call.call(ctx, c)
				require.ErrorIs(t, err, test.kind, call.request)
				var answered *api.Error
				require.ErrorAs(t, err, &answered, call.request)
				assert.Equal(t, test.want, answered, call.request)
			}
		})
	}
}

func TestNoServer(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none"))
	for _, call := range calls {
		_, err := call.call(t.Context(), c)
		require.ErrorIs(t, err, errdefs.ErrUnavailable, call.request)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Info(ctx)
	require.ErrorIs(t, err, context.Canceled)
	assert.NotErrorIs(t, err, errdefs.ErrUnavailable)
}

func TestNames(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) { assert.Fail(t, "a request was sent") })
	for _, name := range []string{"", ".", ".."} {
		_, err := c.GetLayer(t.Context(), name)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorIs(t, c.RemoveSnapshot(t.Context(), "web", name), errdefs.ErrInvalidArgument)
	}
}

// TestCutOff: an answer that ends too early is an error.
func TestCutOff(t *testing.T) {
	half := `{"name": "web", `
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		types := map[string]string{"diff": api.MediaTypeTar, "promote": api.MediaTypeProgress}
		w.Header().Set("Content-Type", types[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]])
		_, _ = io.WriteString(w, half)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	_, err := c.GetLayer(t.Context(), "web")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorIs(t, err, errdefs.ErrUnknown)
	_, err = c.Promote(t.Context(), "web", api.NewImage{To: "web:1"}, nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	data, err := readAll(c.Diff(t.Context(), "web", CompareOptions{}, ""))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, half, data)
}

// TestNoAnswer: a connection that ends before the answer leaves the outcome unknown.
func TestNoAnswer(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	for _, call := range calls {
		_, err := call.call(t.Context(), c)
		require.ErrorIs(t, err, errdefs.ErrUnknown, call.request)
		require.NotErrorIs(t, err, errdefs.ErrUnavailable, call.request)
	}
}

// TestPromoteWithoutEnd: an answer whose last line is neither an image nor an error is an error.
func TestPromoteWithoutEnd(t *testing.T) {
	last := `{"error":{"kind":"unavailable","message":"the registry is away"}}`
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", api.MediaTypeProgress)
		_, _ = io.WriteString(w, `{"task":"push","bytes":1}`+"\n"+last)
	})
	var seen []api.Progress
	note := func(p api.Progress) { seen = append(seen, p) }
	_, err := c.Promote(t.Context(), "web", api.NewImage{To: "docker://a/b:1"}, note)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	assert.Equal(t, []api.Progress{{Task: "push", Bytes: 1}}, seen)
	last = ""
	_, err = c.Promote(t.Context(), "web", api.NewImage{To: "docker://a/b:1"}, nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// TestOtherType: a stream of another type is no layer tar.
func TestOtherType(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "<html>") })
	_, err := c.Diff(t.Context(), "web", CompareOptions{}, "")
	require.ErrorIs(t, err, errdefs.ErrUnknown)
	require.ErrorContains(t, err, "text/html")
}

// TestCancelled: a call and a stream end with their context, and the server sees it.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{}, 2)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/diff") {
			w.Header().Set("Content-Type", api.MediaTypeTar)
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		} else {
			cancel()
		}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	_, err := c.Info(ctx)
	require.ErrorIs(t, err, context.Canceled)
	testfs.Receive(t, ended)
	late, end := context.WithDeadline(t.Context(), time.Now())
	defer end()
	_, err = c.Info(late)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	body, err := c.Diff(ctx, "web", CompareOptions{}, "")
	require.NoError(t, err)
	defer body.Close()
	leave()
	_, err = io.ReadAll(body)
	require.ErrorIs(t, err, context.Canceled)
	testfs.Receive(t, ended)
}

// TestManyAtOnce: a Client is used by many goroutines, and closing it between requests does no harm.
func TestManyAtOnce(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", jsonType)
		_ = json.NewEncoder(w).Encode(api.Layer{Name: strings.TrimPrefix(r.URL.Path, "/v1/layers/")})
	})
	results := make(chan error, 40)
	for i := range cap(results) {
		go func() {
			name := strings.Repeat("a", i+1)
			layer, err := c.GetLayer(t.Context(), name)
			assert.Equal(t, name, layer.Name)
			c.Close()
			results <- err
		}()
	}
	for range cap(results) {
		require.NoError(t, testfs.Receive(t, results))
	}
}
