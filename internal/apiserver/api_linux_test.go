package apiserver

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
)

func tarNames(t testing.TB, data []byte) (names []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
}

// TestOperations: root does everything to layers of the store and to containers.
func TestOperations(t *testing.T) {
	s := newServed(t, nil).newBase()
	var info api.Info
	s.ok("GET", "/v1/info", nil, &info)
	assert.Equal(t, api.Info{Version: "test", Admin: true, Namespaces: []api.Namespace{}}, info)
	assert.Equal(t, api.OpenAPI, s.send("GET", "/v1/openapi.yaml", nil).body)

	var made api.Layer
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "empty"}, &made)
	assert.Equal(t, "empty", made.Name)
	s.fails(api.KindAlreadyExists, "POST", "/v1/layers", api.NewLayer{Name: "empty"})
	s.ok("DELETE", "/v1/layers/empty", nil, nil)
	s.fails(api.KindNotFound, "DELETE", "/v1/layers/empty", nil)
	s.ok("DELETE", "/v1/layers/empty?force=true", nil, nil)

	for layer, store := range map[string]string{"base": "", "docker:web": "fork:"} {
		t.Run(layer, func(t *testing.T) {
			s.t = t
			in := s.stores.store
			if store != "" {
				in = s.stores.containers
			}
			volume := strings.TrimPrefix(layer, "docker:")
			var forks api.Forks
			begun := time.Now()
			s.ok("POST", at("/layers/%s/forks", layer), api.NewForks{Name: "try", Count: 2, TTL: "1h", Labels: map[string]string{"of": "test"}}, &forks)
			require.Len(t, forks.Forks, 2)
			assert.Equal(t, store+"try-1", forks.Forks[0].Name)
			assert.Equal(t, map[string]string{"of": "test"}, forks.Forks[0].Labels)
			assert.WithinRange(t, forks.Forks[0].Expires, begun.Add(time.Hour-time.Second), time.Now().Add(time.Hour+time.Second))
			assert.Contains(t, s.names("/v1/layers?forks="+map[bool]string{true: "true", false: "false"}[store != ""]), store+"try-2")

			var snapshot api.Snapshot
			s.ok("POST", at("/layers/%s/snapshots", layer), api.NewSnapshot{Name: "before", Message: "why"}, &snapshot)
			assert.Equal(t, "why", snapshot.Message)
			assert.Equal(t, layer, snapshot.Layer)
			s.write(in, "try-1", "new", "2")
			var changed api.Changes
			s.ok("GET", at("/layers/%stry-1/changes", store), nil, &changed)
			assert.Equal(t, []api.Change{{Kind: api.Added, Path: "/new"}}, changed.Changes)
			s.ok("GET", at("/layers/%stry-1/changes?since=%s@before&walk=true", store, layer), nil, &changed)
			assert.Equal(t, []api.Change{{Kind: api.Added, Path: "/new"}}, changed.Changes)
			assert.Equal(t, []string{"new"}, tarNames(t, s.send("GET", at("/layers/%stry-1/diff", store), nil).body))
			assert.Contains(t, tarNames(t, s.send("GET", at("/layers/%stry-1/export?name=a:1", store), nil).body), "manifest.json")
			s.fails(api.KindInvalidArgument, "GET", at("/layers/%stry-1/changes?since=%s&whole=true", store, layer), nil)

			var merged api.Merge
			s.ok("POST", at("/layers/%stry-1/merge", store), api.NewMerge{}, &merged)
			assert.Equal(t, layer, map[bool]string{true: "docker:", false: ""}[store != ""]+strings.TrimPrefix(merged.Into, "fork:"))
			assert.Equal(t, "before-merge-1", merged.Before)
			assert.Equal(t, "2", s.read(in, volume, "new"))
			s.write(in, "try-2", "new", "3")
			conflict := s.fails(api.KindConflict, "POST", at("/layers/%stry-2/merge", store), api.NewMerge{})
			assert.Equal(t, []api.Conflict{{Path: "/new", Fork: api.Added, Layer: api.Added}}, conflict.Conflicts)
			assert.NotEmpty(t, conflict.Into)
			s.ok("POST", at("/layers/%stry-2/merge", store), api.NewMerge{Strategy: api.Theirs}, &merged)
			assert.Equal(t, "3", s.read(in, volume, "new"))

			s.ok("POST", at("/layers/%s/rollback", layer), api.NewRollback{Snapshot: "before"}, &snapshot)
			assert.Equal(t, "before-rollback-1", snapshot.Name)
			var snapshots api.Snapshots
			s.ok("GET", at("/layers/%s/snapshots", layer), nil, &snapshots)
			assert.Len(t, snapshots.Snapshots, 4)
			var l api.Log
			s.ok("GET", at("/layers/%s/log", layer), nil, &l)
			assert.NotEmpty(t, l.Moments)
			assert.Equal(t, api.MediaTypeStream, s.send("GET", at("/layers/%s@before/stream", layer), nil).header.Get("Content-Type"))
			s.ok("DELETE", at("/layers/%s/snapshots/before", layer), nil, nil)
			s.fails(api.KindNotFound, "POST", at("/layers/%s/rollback", layer), api.NewRollback{Snapshot: "before"})

			s.ok("PUT", at("/layers/%stry-1/limit", store), api.NewLimit{Size: "1G"}, nil)
			var usage api.Usage
			s.ok("GET", at("/layers/%stry-1/usage", store), nil, &usage)
			assert.Equal(t, uint64(1<<30), usage.Limit)
			var one api.Layer
			s.ok("GET", at("/layers/%stry-1", store), nil, &one)
			assert.Equal(t, "test", one.Labels["of"])
			assert.NotEmpty(t, one.Details)
			s.ok("DELETE", at("/layers/%stry-1", store), nil, nil)
		})
	}
}

// TestPromote: the answer is the progress, and then the image.
func TestPromote(t *testing.T) {
	s := newServed(t, nil).newBase()
	layout := filepath.Join(t.TempDir(), "layout")
	for _, to := range []string{"app:1", "oci:" + layout + ":app"} {
		a := s.send("POST", "/v1/layers/base/promote", api.NewImage{To: to, Message: "why"})
		assert.Equal(t, api.MediaTypeProgress, a.header.Get("Content-Type"), "%s", a.body)
		lines := strings.Split(strings.TrimSpace(string(a.body)), "\n")
		require.Greater(t, len(lines), 1)
		var last api.Progress
		require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &last))
		require.NotNil(t, last.Image, "%s", a.body)
		assert.Len(t, last.Image.DiffIDs, 1)
	}
	assert.FileExists(t, filepath.Join(layout, "index.json"))
	var l api.Layer
	s.ok("GET", "/v1/layers/app:1", nil, &l)
	assert.Equal(t, "app:1", l.Image)
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/base/promote", api.NewImage{To: "docker-archive:-"})
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/base/promote", api.NewImage{To: "oci:relative:web"})
	s.as(alice).fails(api.KindPermissionDenied, "POST", "/v1/layers/base/promote", api.NewImage{To: "oci:" + layout + ":web"})
}

// TestInUse: a layer that is mounted is not rolled back or removed.
func TestInUse(t *testing.T) {
	s := newServed(t, nil).newBase()
	s.ok("POST", "/v1/layers/base/snapshots", api.NewSnapshot{Name: "before"}, nil)
	require.NoError(t, s.stores.store.Mounted(t.Context(), "base", func(dir string) error {
		f, err := os.Open(dir)
		require.NoError(t, err)
		defer f.Close()
		s.fails(api.KindFailedPrecondition, "POST", "/v1/layers/base/rollback", api.NewRollback{Snapshot: "before"})
		s.ok("POST", "/v1/layers/base/rollback", api.NewRollback{Snapshot: "before", Live: true}, nil)
		s.fails(api.KindFailedPrecondition, "DELETE", "/v1/layers/base", nil)
		return nil
	}))
}
