package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/testfs"
)

// serve answers requests as an engine, and returns a client of it.
func serve(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	client, err := NewClient("unix://" + socket)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// TestContainer: answers of the engine, also those that no engine should give.
func TestContainer(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/containers/web/json":
			fmt.Fprint(w, `{"Id": "1", "Name": "/web", "HostConfig": {"StorageOpt": {"size": "2G"}}, "Other": []}`)
		case "/containers/..%2Fimages/json":
			http.Error(w, `{"message": "no such container"}`, http.StatusNotFound)
		case "/containers/broken/json":
			fmt.Fprint(w, `{"Id": 1`)
		case "/containers/large/json":
			fmt.Fprintf(w, `{"Id": "%s"}`, strings.Repeat("1", maxObject))
		default:
			http.Error(w, "<html>", http.StatusInternalServerError)
		}
	})
	c, err := client.Container(t.Context(), "web")
	require.NoError(t, err)
	assert.Equal(t, "1", c.ID)
	assert.Equal(t, map[string]string{"size": "2G"}, c.HostConfig.StorageOpt)
	_, err = client.Container(t.Context(), "../images")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorContains(t, err, "no such container")
	for _, name := range []string{"broken", "large", "other"} {
		_, err = client.Container(t.Context(), name)
		require.Error(t, err, name)
	}
}

// TestEvents: a stream of events ends with the engine, and with an event that is too large.
func TestEvents(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		assert.JSONEq(t, `{"type": ["container"], "event": ["create", "destroy"]}`, r.URL.Query().Get("filters"))
		fmt.Fprint(w, `{"Action": "create", "Actor": {"ID": "1"}}`+"\n"+`{"Action": "destroy", "Actor": {"ID": "1"}}`)
		fmt.Fprintf(w, `{"Action": "%s"}`, strings.Repeat("1", 2*maxObject))
	})
	stream, err := client.events(t.Context())
	require.NoError(t, err)
	defer stream.Close()
	for _, want := range []string{created, removed} {
		e, err := stream.next()
		require.NoError(t, err)
		assert.Equal(t, want, e.Action)
		assert.Equal(t, "1", e.Actor.ID)
	}
	_, err = stream.next()
	require.Error(t, err)
}

func TestCheckAddress(t *testing.T) {
	require.NoError(t, CheckAddress(DefaultAddress))
	for _, address := range []string{"", "/run/docker.sock", "tcp://127.0.0.1:2375", "unix://run/docker.sock", "unix://"} {
		require.ErrorIs(t, CheckAddress(address), errdefs.ErrInvalidArgument, address)
	}
}

// limits are the limits that have been set, by id. Some containers have one of 4 MiB before.
type limits struct{ sync.Map }

func (l *limits) Key(_ context.Context, _, own string) (string, error) { return own, nil }

func (l *limits) Stat(_ context.Context, key string) (snapshots.Info, error) {
	if strings.HasPrefix(key, "before") {
		return snapshots.Info{Labels: map[string]string{snapshots.LabelSnapshotMaxSize: "4194304"}}, nil
	}
	return snapshots.Info{}, nil
}

func (l *limits) SetLimit(_ context.Context, key string, bytes uint64) error {
	l.Store(key, bytes)
	return nil
}

// TestOptionBeforeLabel: --storage-opt size comes before the label, which an image can bring, also where NRI has applied the label.
// It does not come before cowshed limit.
func TestOptionBeforeLabel(t *testing.T) {
	const label, option = `"Config": {"Labels": {"cowshed.size": "%s"}}`, `"HostConfig": {"StorageOpt": {"Size": "%s"}}`
	containers := map[string]string{
		"label": fmt.Sprintf(label, "4M"), "option": fmt.Sprintf(option, "2M"), "none": `"Name": "/none"`,
		"both":         fmt.Sprintf(label+", "+option, "4M", "2M"),
		"bad-label":    fmt.Sprintf(label+", "+option, "much", "2M"),
		"bad-option":   fmt.Sprintf(label+", "+option, "4M", "much"),
		"before-nri":   fmt.Sprintf(label+", "+option, "4M", "2M"),
		"before-limit": fmt.Sprintf(label+", "+option, "8M", "2M"),
	}
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			assert.NoError(t, http.NewResponseController(w).Flush())
			<-r.Context().Done()
		case "/containers/json":
			var list []map[string]string
			for id := range containers {
				list = append(list, map[string]string{"Id": id})
			}
			list = append(list, map[string]string{"Id": "zz-last"})
			assert.NoError(t, json.NewEncoder(w).Encode(list))
		default:
			id := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/containers/"), "/json")
			more := containers[id]
			if id == "zz-last" {
				more = fmt.Sprintf(option, "1M")
			}
			fmt.Fprintf(w, `{"Id": %q, %s}`, id, more)
		}
	})
	var set limits
	s := &Source{Client: client}
	group := enginelimits.NewGroup([]enginelimits.Source{s}, &set, enginelimits.NewMetrics(), t.TempDir(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { group.Run(ctx) })
	require.Eventually(t, func() bool { _, ok := set.Load("zz-last"); return ok }, testfs.Patience, time.Millisecond)
	cancel()
	testfs.Within(t, running.Wait)
	set.Delete("zz-last")
	got := make(map[string]uint64)
	set.Range(func(id, bytes any) bool {
		got[id.(string)] = bytes.(uint64)
		return true
	})
	assert.Equal(t, map[string]uint64{
		"label": 4 << 20, "option": 2 << 20, "both": 2 << 20, "bad-label": 2 << 20, "before-nri": 2 << 20,
	}, got)
}
