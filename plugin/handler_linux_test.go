package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// serveFake serves a fake driver that is initialized.
func serveFake(t testing.TB, f *fake) *engine {
	t.Helper()
	e := serveAdapter(t, f.opener)
	require.NoError(t, e.init("/home", nil, user.IdentityMapping{}))
	return e
}

// TestEveryMethod sends the engine's requests and reads its answers.
func TestEveryMethod(t *testing.T) {
	testfs.CheckLeaks(t)
	var opened InitRequest
	var parents []string
	f := &fake{
		changes: func() ([]archive.Change, error) {
			return []archive.Change{{Path: "/m", Kind: archive.ChangeModify}, {Path: "/a\n", Kind: archive.ChangeAdd}, {Path: "/d", Kind: archive.ChangeDelete}}, nil
		},
		diff: func(_, parent string) (io.ReadCloser, error) {
			parents = append(parents, parent)
			return io.NopCloser(strings.NewReader("tar")), nil
		},
		applyDiff: func(diff io.Reader) (int64, error) { return io.Copy(io.Discard, diff) },
	}
	e := serveAdapter(t, func(request InitRequest) (graphdriver.Driver, error) {
		opened = request
		return f, nil
	})

	manifest, err := e.activate()
	require.NoError(t, err)
	assert.Equal(t, []string{"GraphDriver"}, manifest)

	maps := []user.IDMap{{ID: 0, ParentID: 100_000, Count: 65_536}}
	require.NoError(t, e.init("/var/lib/docker/cowshed", []string{"btrfs.size=10G"}, user.IdentityMapping{UIDMaps: maps, GIDMaps: maps}))
	assert.Equal(t, InitRequest{Home: "/var/lib/docker/cowshed", Options: []string{"btrfs.size=10G"}, UIDMaps: maps, GIDMaps: maps}, opened)
	exact, err := e.capabilities()
	require.NoError(t, err)
	assert.False(t, exact)

	require.NoError(t, e.Create("base", "", nil))
	require.NoError(t, e.CreateReadWrite("child", "base", &graphdriver.CreateOpts{MountLabel: "l", StorageOpt: map[string]string{"size": "1G"}}))
	require.ErrorIs(t, e.Create("base", "", nil), errdefs.ErrAlreadyExists)
	assert.True(t, e.Exists("child"))
	assert.False(t, e.Exists("other"))
	dir, err := e.Get("child", "l")
	require.NoError(t, err)
	assert.Equal(t, "/layers/child", dir)
	require.NoError(t, e.Put("child"))
	_, err = e.Get("other", "")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	assert.Equal(t, [][2]string{{"B", "1"}, {"A", "2"}}, e.Status())
	metadata, err := e.GetMetadata("child")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"Dir": "/layers/child"}, metadata)
	changes, err := e.Changes("child", "base")
	require.NoError(t, err)
	assert.Equal(t, []archive.Change{{Path: "/m", Kind: archive.ChangeModify}, {Path: "/a\n", Kind: archive.ChangeAdd}, {Path: "/d", Kind: archive.ChangeDelete}}, changes)
	size, err := e.DiffSize("child", "base")
	require.NoError(t, err)
	assert.Equal(t, int64(1<<40), size)
	for _, parent := range []string{"base", ""} {
		diff, err := e.Diff("child", parent)
		require.NoError(t, err)
		content, err := io.ReadAll(diff)
		require.NoError(t, err)
		assert.Equal(t, "tar", string(content))
		require.NoError(t, diff.Close())
	}
	assert.Equal(t, []string{"base", ""}, parents)
	size, err = e.ApplyDiff("child", "base", strings.NewReader("a tar"))
	require.NoError(t, err)
	assert.Equal(t, int64(5), size)
	require.NoError(t, e.Remove("child"))
	assert.False(t, e.Exists("child"))
	require.NoError(t, e.Cleanup())
}

// TestBadRequests: invalid requests are answered with an error, also after others on the same connection, and harm
// nothing.
func TestBadRequests(t *testing.T) {
	testfs.CheckLeaks(t)
	var called atomic.Int32
	f := &fake{
		diff:      func(string, string) (io.ReadCloser, error) { called.Add(1); return nil, errors.New("called") },
		applyDiff: func(io.Reader) (int64, error) { called.Add(1); return 0, errors.New("called") },
		changes:   func() ([]archive.Change, error) { called.Add(1); return nil, errors.New("called") },
		remove:    func(string) error { called.Add(1); return errors.New("called") },
	}
	e := serveFake(t, f)
	e.http.Transport.(*http.Transport).DisableKeepAlives = false
	require.NoError(t, e.Create("base", "", nil))

	huge := `{"ID": "` + strings.Repeat("x", 40<<20) + `"}`
	withID := []string{"Create", "CreateReadWrite", "Remove", "Get", "Put", "Exists", "GetMetadata", "Diff", "Changes", "DiffSize"}
	type request struct {
		name, method, path, body string
		status                   int
	}
	tests := []request{
		{"no such method", "POST", "/GraphDriver.Destroy", `{}`, http.StatusNotFound},
		{"no method", "POST", "/", `{}`, http.StatusNotFound},
		{"another case", "POST", "/graphdriver.remove", `{"ID": "base"}`, http.StatusNotFound},
		{"Init without home", "POST", "/GraphDriver.Init", `{}`, http.StatusBadRequest},
		{"Init with a relative home", "POST", "/GraphDriver.Init", `{"Home": "home"}`, http.StatusBadRequest},
		{"Init with a field too many", "POST", "/GraphDriver.Init", `{"Home": "/home", "Options": []}`, http.StatusBadRequest},
		{"Init with a field too many in a map", "POST", "/GraphDriver.Init", `{"Home": "/home", "UIDMaps": [{"size": 1, "x": 1}]}`, http.StatusBadRequest},
		{"Init with an empty range", "POST", "/GraphDriver.Init", `{"Home": "/home", "UIDMaps": [{}]}`, http.StatusBadRequest},
		{"Init with a negative id", "POST", "/GraphDriver.Init", `{"Home": "/home", "GIDMaps": [{"container_id": -1, "size": 1}]}`, http.StatusBadRequest},
		{"Init with too many ids", "POST", "/GraphDriver.Init", `{"Home": "/home", "GIDMaps": [{"host_id": 1, "size": 4294967295}]}`, http.StatusBadRequest},
		{"Init with an id that overflows", "POST", "/GraphDriver.Init", `{"Home": "/home", "GIDMaps": [{"host_id": 9223372036854775807, "size": 9223372036854775807}]}`, http.StatusBadRequest},
		{"Init with options of another type", "POST", "/GraphDriver.Init", `{"Home": "/home", "Opts": "a=b"}`, http.StatusBadRequest},
		{"Status with an argument", "POST", "/GraphDriver.Status", `{"ID": "base"}`, http.StatusBadRequest},
		{"Cleanup with an argument", "POST", "/GraphDriver.Cleanup", `{"ID": "base"}`, http.StatusBadRequest},
		{"Capabilities with an argument", "POST", "/GraphDriver.Capabilities", `[]`, http.StatusBadRequest},
		{"Create with options of another type", "POST", "/GraphDriver.Create", `{"ID": "x", "StorageOpt": {"size": 1}}`, http.StatusBadRequest},
		{"ApplyDiff without query", "POST", "/GraphDriver.ApplyDiff", `tar`, http.StatusBadRequest},
		{"ApplyDiff without id", "POST", "/GraphDriver.ApplyDiff?parent=base", `tar`, http.StatusBadRequest},
		{"ApplyDiff with an empty id", "POST", "/GraphDriver.ApplyDiff?id=&parent=base", `tar`, http.StatusBadRequest},
		{"ApplyDiff with two ids", "POST", "/GraphDriver.ApplyDiff?id=base&id=other", `tar`, http.StatusBadRequest},
		{"ApplyDiff with another argument", "POST", "/GraphDriver.ApplyDiff?id=base&force=1", `tar`, http.StatusBadRequest},
		{"ApplyDiff with a query that is none", "POST", "/GraphDriver.ApplyDiff?id=%zz", `tar`, http.StatusBadRequest},
		{"ApplyDiff with a large body and without id", "POST", "/GraphDriver.ApplyDiff", huge, http.StatusBadRequest},
		{"ApplyDiff by GET", "GET", "/GraphDriver.ApplyDiff?id=base", ``, http.StatusMethodNotAllowed},
	}
	for _, method := range withID {
		path := "/GraphDriver." + method
		tests = append(tests,
			request{method + " without a body", "POST", path, ``, http.StatusBadRequest},
			request{method + " without id", "POST", path, `{}`, http.StatusBadRequest},
			request{method + " with an empty id", "POST", path, `{"ID": ""}`, http.StatusBadRequest},
			request{method + " with an id of another type", "POST", path, `{"ID": 1}`, http.StatusBadRequest},
			request{method + " of null", "POST", path, `null`, http.StatusBadRequest},
			request{method + " of a list", "POST", path, `["base"]`, http.StatusBadRequest},
			request{method + " of a field too many", "POST", path, `{"ID": "base", "Force": true}`, http.StatusBadRequest},
			request{method + " of two objects", "POST", path, `{"ID": "base"} {"ID": "base"}`, http.StatusBadRequest},
			request{method + " of something more", "POST", path, `{"ID": "base"} x`, http.StatusBadRequest},
			request{method + " of JSON that is cut off", "POST", path, `{"ID": "base"`, http.StatusBadRequest},
			request{method + " of binary", "POST", path, "\x00\xff\x1f\x8b", http.StatusBadRequest},
			request{method + " by GET", "GET", path, ``, http.StatusMethodNotAllowed},
			request{method + " by PUT", "PUT", path, `{"ID": "base"}`, http.StatusMethodNotAllowed},
			request{method + " of a huge body", "POST", path, huge, http.StatusRequestEntityTooLarge},
			request{method + " of deep JSON", "POST", path, `{"ID": ` + strings.Repeat("[", 100_000), http.StatusBadRequest},
		)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, err := http.NewRequest(test.method, "http://plugin"+test.path, strings.NewReader(test.body))
			require.NoError(t, err)
			answer, err := e.http.Do(r)
			require.NoError(t, err)
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			require.NoError(t, err)
			assert.Equal(t, test.status, answer.StatusCode)
			var failed ErrorResponse
			decoder := json.NewDecoder(bytes.NewReader(text))
			decoder.DisallowUnknownFields()
			require.NoError(t, decoder.Decode(&failed), "%q", text)
			assert.NotEmpty(t, failed.Err)
			assert.Less(t, len(failed.Err), 1000)
		})
	}
	assert.Zero(t, called.Load(), "no such request reaches the driver")
	assert.True(t, e.Exists("base"), "the server lives on")
	e.http.CloseIdleConnections()
}

// TestRequestsWithoutArguments: engines send an empty object, and a body that is empty is as good.
func TestRequestsWithoutArguments(t *testing.T) {
	testfs.CheckLeaks(t)
	e := serveFake(t, &fake{})
	for _, method := range []string{"Status", "Capabilities", "Cleanup"} {
		for _, body := range []string{"", "{}", "{}\n"} {
			answer, err := e.post("GraphDriver."+method, strings.NewReader(body))
			require.NoError(t, err, "%s %q", method, body)
			require.NoError(t, answer.Close())
			require.NoError(t, e.init("/home", nil, user.IdentityMapping{}))
		}
	}
}

// TestDriverErrors: the text of a driver's error arrives as it is.
func TestDriverErrors(t *testing.T) {
	testfs.CheckLeaks(t)
	text := "btrfs: remove layer \"x\": \u00fc <&> \n\x01 " + strings.Repeat("long ", 1000)
	e := serveFake(t, &fake{
		remove:  func(string) error { return errors.New(text) },
		changes: func() ([]archive.Change, error) { return nil, errors.New(text) },
	})
	assert.EqualError(t, e.Remove("x"), text)
	_, err := e.Changes("x", "")
	assert.EqualError(t, err, text)
}

// TestPanics: a driver that panics fails the one request.
func TestPanics(t *testing.T) {
	testfs.CheckLeaks(t)
	f := &fake{
		remove:    func(string) error { panic("in Remove") },
		diff:      func(string, string) (io.ReadCloser, error) { panic("in Diff") },
		applyDiff: func(io.Reader) (int64, error) { panic("in ApplyDiff") },
		cleanup:   func() error { return nil },
	}
	e := serveFake(t, f)
	for range 3 {
		assert.ErrorContains(t, e.Remove("x"), "in Remove")
		_, err := e.Diff("x", "")
		assert.ErrorContains(t, err, "in Diff")
		_, err = e.ApplyDiff("x", "", bytes.NewReader(make([]byte, 10<<20)))
		assert.ErrorContains(t, err, "in ApplyDiff")
	}
	f.diff = func(string, string) (io.ReadCloser, error) { return io.NopCloser(panicReader{}), nil }
	_, err := e.Diff("x", "")
	assert.ErrorContains(t, err, "in Read")
	f.diff = func(string, string) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), panicReader{})), nil
	}
	diff, err := e.Diff("x", "")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, diff)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NoError(t, diff.Close())
	f.remove = nil
	assert.NoError(t, e.Remove("x"), "and nothing waits for the streams that broke")
}

type panicReader struct{}

func (panicReader) Read([]byte) (int, error) { panic("in Read") }

// TestConcurrentRequests sends many requests at once, over connections that are kept.
func TestConcurrentRequests(t *testing.T) {
	testfs.CheckLeaks(t)
	e := serveFake(t, &fake{
		diff: func(id, _ string) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(strings.Repeat(id, 10_000))), nil
		},
		applyDiff: func(diff io.Reader) (int64, error) { return io.Copy(io.Discard, diff) },
	})
	e.http.Transport.(*http.Transport).DisableKeepAlives = false
	var group errgroup.Group
	for worker := range 16 {
		id := strings.Repeat(string(rune('a'+worker)), 64)
		group.Go(func() error {
			for range 10 {
				if err := errors.Join(e.Create(id, "", nil), e.roundTrip(id), e.Remove(id)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	e.http.CloseIdleConnections()
}

// roundTrip applies a layer's diff to it.
func (e *engine) roundTrip(id string) error {
	diff, err := e.Diff(id, "")
	if err != nil {
		return err
	}
	size, err := e.ApplyDiff(id, "", diff)
	if err == nil && size != int64(len(id))*10_000 {
		err = errors.New("a diff was shortened")
	}
	return err
}
