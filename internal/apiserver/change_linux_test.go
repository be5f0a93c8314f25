package apiserver

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// TestDoneIsDone: a change that has happened is a success, also if nothing can be cleaned up after it.
func TestDoneIsDone(t *testing.T) {
	s := newServed(t, nil).newBase()
	s.ok("POST", "/v1/layers/base/snapshots", api.NewSnapshot{Name: "before"}, nil)
	s.ok("POST", "/v1/layers/base@before/forks", api.NewForks{Name: "try"}, nil)
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "other"}, nil)
	driver := s.stores.store.Driver
	moments := filepath.Join(live.Dir(s.stores.store.Root, driver.String(), driver.Backend()), "moments")
	require.DirExists(t, moments)
	require.NoError(t, os.MkdirAll(filepath.Join(moments, ".new-foreign", "full"), 0o700))
	require.Error(t, s.stores.store.Live.Sweep(t.Context()))
	s.ok("DELETE", "/v1/layers/base/snapshots/before", nil, nil)
	s.ok("DELETE", "/v1/layers/other", nil, nil)
	s.fails(api.KindNotFound, "DELETE", "/v1/layers/base/snapshots/before", nil)
	assert.Equal(t, []string{"base", "try"}, s.names("/v1/layers"))
}

// TestUndescribed: the answer about a change has the facts that are known if others are not, since another request has removed the
// layer or snapshot meanwhile.
func TestUndescribed(t *testing.T) {
	s := newServed(t, nil)
	w := httptest.NewRecorder()
	r := &request{Request: httptest.NewRequest(http.MethodPost, "/", http.NoBody), server: s.server, out: newAnswer(w, usualPatience.write)}
	gone := live.Moment{Volume: "gone", Layer: "base", Name: "before", Message: "why"}
	require.NoError(t, r.snapshot(s.stores.store, http.StatusCreated, gone))
	assert.Equal(t, http.StatusCreated, w.Code)
	var snapshot api.Snapshot
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &snapshot))
	assert.Equal(t, api.Snapshot{Name: "before", Layer: "base", Message: "why", Volume: "gone"}, snapshot)

	l, err := describeNew(t.Context(), s.stores.store, cowcommon.Volume{Name: "new", Parent: "base"})
	require.Error(t, err)
	assert.Equal(t, api.Layer{Name: "new", Parent: "base"}, l)
}
