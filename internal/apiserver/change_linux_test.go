package apiserver

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
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

// TestGivenUpInPlace: a client that goes away leaves no part of a live rollback.
func TestGivenUpInPlace(t *testing.T) {
	const files = 5000
	s := newServed(t, nil).newBase()
	require.NoError(t, s.stores.store.Mounted(t.Context(), "base", func(dir string) error {
		in := filepath.Join(dir, "in")
		require.NoError(t, os.Mkdir(in, 0o755))
		for i := range files {
			require.NoError(t, os.WriteFile(filepath.Join(in, strconv.Itoa(i)), []byte("1"), 0o644))
		}
		s.ok("POST", "/v1/layers/base/snapshots", api.NewSnapshot{Name: "full"}, nil)
		require.NoError(t, os.RemoveAll(in))
		conn := s.dial()
		_, err := io.WriteString(conn, "POST /v1/layers/base/rollback HTTP/1.1\r\nHost: c\r\nContent-Length: 32\r\n\r\n"+`{"snapshot":"full", "live":true}`)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			_, err := os.Lstat(filepath.Join(in, "0"))
			return err == nil
		}, testfs.Patience, time.Millisecond)
		require.NoError(t, conn.Close())
		require.Eventually(t, s.isIdle, testfs.Patience, 10*time.Millisecond)
		entries, err := os.ReadDir(in)
		require.NoError(t, err)
		assert.Len(t, entries, files)
		return nil
	}))
}

// TestUntilStop: the context of changes in place ends with the server, and not with the request.
func TestUntilStop(t *testing.T) {
	stop, end := context.WithCancel(t.Context())
	request, leave := context.WithCancel(context.WithValue(stop, stopKey{}, stop))
	leave()
	require.Error(t, request.Err())
	require.NoError(t, untilStop(request).Err())
	end()
	require.Error(t, untilStop(request).Err())
	require.NoError(t, untilStop(stop).Err(), "without a server")
}
