package plugin

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// unmapped maps no ids.
var unmapped user.IdentityMapping

// recorder opens fake drivers and records their calls.
type recorder struct {
	events  []string
	openErr error
	made    *fake
}

func (r *recorder) open(request InitRequest) (graphdriver.Driver, error) {
	r.events = append(r.events, "open "+request.Home)
	if r.openErr != nil {
		return nil, r.openErr
	}
	r.made = &fake{cleanup: func() error {
		r.events = append(r.events, "close "+request.Home)
		return nil
	}}
	return r.made, nil
}

func (r *recorder) take() []string {
	events := r.events
	r.events = nil
	return events
}

// TestBeforeInit: without Init every method fails and says why.
func TestBeforeInit(t *testing.T) {
	testfs.CheckLeaks(t)
	r := &recorder{}
	e := serveAdapter(t, r.open)
	_, diff := e.Diff("x", "")
	_, changes := e.Changes("x", "")
	_, size := e.DiffSize("x", "")
	_, apply := e.ApplyDiff("x", "", zeros(100))
	_, get := e.Get("x", "")
	_, metadata := e.GetMetadata("x")
	for name, err := range map[string]error{
		"Create": e.Create("x", "", nil), "CreateReadWrite": e.CreateReadWrite("x", "", nil), "Remove": e.Remove("x"),
		"Put": e.Put("x"), "Diff": diff, "Changes": changes, "DiffSize": size, "ApplyDiff": apply, "Get": get, "GetMetadata": metadata,
	} {
		assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		assert.ErrorContains(t, err, "has not called Init", name)
	}
	assert.False(t, e.Exists("x"))
	assert.Equal(t, "Error", e.Status()[0][0])
	_, err := e.capabilities()
	require.NoError(t, err)
	require.NoError(t, e.Cleanup(), "there is nothing to clean up")
	assert.Empty(t, r.take())
}

// TestInitAgain: each Init has a driver of its own, and the one before is closed.
func TestInitAgain(t *testing.T) {
	testfs.CheckLeaks(t)
	r := &recorder{}
	e := serveAdapter(t, r.open)
	require.NoError(t, e.init("/a", nil, unmapped))
	require.NoError(t, e.Create("x", "", nil))
	require.NoError(t, e.init("/a", nil, unmapped))
	assert.Equal(t, []string{"open /a", "close /a", "open /a"}, r.take())
	assert.False(t, e.Exists("x"), "the new driver is asked")
	require.NoError(t, e.init("/b", []string{"o=1"}, unmapped))
	assert.Equal(t, []string{"close /a", "open /b"}, r.take())
	require.NoError(t, e.Cleanup())
	require.NoError(t, e.Cleanup())
	assert.Equal(t, []string{"close /b"}, r.take())
	require.ErrorIs(t, e.Create("x", "", nil), errdefs.ErrFailedPrecondition)
	require.NoError(t, e.init("/b", nil, unmapped))
	assert.Equal(t, []string{"open /b"}, r.take())
}

// TestInitThatFails: the engine gets the error, and there is no driver.
func TestInitThatFails(t *testing.T) {
	testfs.CheckLeaks(t)
	r := &recorder{}
	e := serveAdapter(t, r.open)
	require.NoError(t, e.init("/a", nil, unmapped))
	r.openErr = errors.New("no btrfs here")
	require.EqualError(t, e.init("/b", nil, unmapped), "no btrfs here")
	require.ErrorIs(t, e.Create("x", "", nil), errdefs.ErrFailedPrecondition)
	assert.Equal(t, []string{"open /a", "close /a", "open /b"}, r.take())
}

// TestCloseOfEarlierDriverFails: Init succeeds if the new driver opens all the same.
func TestCloseOfEarlierDriverFails(t *testing.T) {
	testfs.CheckLeaks(t)
	r := &recorder{}
	e := serveAdapter(t, r.open)
	require.NoError(t, e.init("/a", nil, unmapped))
	r.made.cleanup = func() error { return errDriver }
	require.NoError(t, e.init("/a", nil, unmapped))
	r.made.cleanup = func() error { return errDriver }
	require.EqualError(t, e.Cleanup(), errDriver.Error())
}

// TestPluginRestarts: a new process goes on where the engine had told the one before to work.
func TestPluginRestarts(t *testing.T) {
	testfs.CheckLeaks(t)
	stateFile := filepath.Join(t.TempDir(), "run", "state.json")
	first := &recorder{}
	adapter := NewAdapter(first.open, AdapterOptions{StateFile: stateFile})
	maps := []user.IDMap{{ID: 0, ParentID: 5, Count: 10}}
	require.NoError(t, adapter.Init("/home", []string{"a=b"}, maps, maps))
	info, err := os.Stat(stateFile)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())

	// Without Close, as after kill -9.
	var opened InitRequest
	second := &recorder{}
	adapter = NewAdapter(func(request InitRequest) (graphdriver.Driver, error) {
		opened = request
		return second.open(request)
	}, AdapterOptions{StateFile: stateFile})
	require.NoError(t, adapter.Create("x", "", "", nil), "the first request opens the driver")
	assert.Equal(t, InitRequest{Home: "/home", Options: []string{"a=b"}, UIDMaps: maps, GIDMaps: maps}, opened)
	require.NoError(t, adapter.Resume(), "it is open")
	require.NoError(t, adapter.Close())
	require.NoError(t, adapter.Close())
	assert.Equal(t, []string{"open /home", "close /home"}, second.take())
	require.ErrorIs(t, adapter.Resume(), errdefs.ErrAborted)
	require.ErrorIs(t, adapter.Init("/home", nil, nil, nil), errdefs.ErrAborted)

	adapter = NewAdapter((&recorder{}).open, AdapterOptions{StateFile: stateFile})
	require.NoError(t, adapter.Resume(), "a plugin that has stopped in order can go on, too")
	require.NoError(t, adapter.Init("/home", nil, nil, nil))
	require.NoError(t, adapter.Cleanup())
	require.NoFileExists(t, stateFile, "the engine has stopped")
	require.ErrorIs(t, adapter.Resume(), errdefs.ErrFailedPrecondition)
	require.NoError(t, adapter.Close())
}

// TestResumeFails: it is tried again with each request, and Init is not in the way.
func TestResumeFails(t *testing.T) {
	testfs.CheckLeaks(t)
	stateFile := filepath.Join(t.TempDir(), "state.json")
	text, err := json.Marshal(InitRequest{Home: "/home"})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(stateFile, text, 0o600))
	r := &recorder{openErr: errors.New("not mounted yet")}
	adapter := NewAdapter(r.open, AdapterOptions{StateFile: stateFile})
	require.ErrorContains(t, adapter.Resume(), "not mounted yet")
	require.ErrorContains(t, adapter.Remove("x"), "not mounted yet")
	r.openErr = nil
	require.NoError(t, adapter.Remove("x"))
	require.NoError(t, adapter.Close())

	for _, text := range []string{"", "{", `{"Home": "relative"}`, `{"Home": "/home", "X": 1}`, "null"} {
		require.NoError(t, os.WriteFile(stateFile, []byte(text), 0o600))
		adapter = NewAdapter((&recorder{}).open, AdapterOptions{StateFile: stateFile})
		require.Error(t, adapter.Resume(), "%q", text)
		require.NoError(t, adapter.Init("/home", nil, nil, nil), "%q", text)
		require.NoError(t, adapter.Close())
	}
}

// TestStateFileFails: an engine is not told that it can start if a restart of the plugin would be its end.
func TestStateFileFails(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	r := &recorder{}
	adapter := NewAdapter(r.open, AdapterOptions{StateFile: filepath.Join(dir, "file", "state.json")})
	require.Error(t, adapter.Init("/home", nil, nil, nil))
	assert.Empty(t, r.take())

	// Where the directory cannot be made.
	adapter = NewAdapter(r.open, AdapterOptions{StateFile: "/proc/self/none/state.json"})
	require.Error(t, adapter.Init("/home", nil, nil, nil))
	assert.Equal(t, []string{"open /home", "close /home"}, r.take())
	require.NoError(t, adapter.Close())
}
