package apiserver

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// TestMembers: a member forks the layers that its namespace may read, and does everything to its own layers and nothing to others.
func TestMembers(t *testing.T) {
	s := newServed(t, nil).newBase()
	s.ok("POST", "/v1/layers/base/snapshots", api.NewSnapshot{Name: "monday"}, nil)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "secret"}, nil)
	s.ok("POST", "/v1/layers/secret/promote", api.NewImage{To: "ci.image"}, nil)
	s.as(alice)
	var info api.Info
	s.ok("GET", "/v1/info", nil, &info)
	assert.Equal(t, api.Info{Version: "test", UID: alice, Namespaces: []api.Namespace{{Name: "ci", Prefix: "ci.", Readable: []string{"base", "docker:web"}}}}, info)
	assert.Equal(t, []string{"base"}, s.names("/v1/layers"))
	for _, source := range []string{"base", "base@monday", "docker:web"} {
		var forks api.Forks
		s.ok("POST", at("/layers/%s/forks", source), api.NewForks{}, &forks)
		name := forks.Forks[0].Name
		assert.True(t, strings.HasPrefix(strings.TrimPrefix(name, "fork:"), "ci."), name)
		s.ok("POST", at("/layers/%s/forks", name), api.NewForks{Name: strings.TrimPrefix(name, "fork:") + "-again"}, nil)
		s.ok("POST", at("/layers/%s/snapshots", name), api.NewSnapshot{Name: "a"}, nil)
		s.ok("POST", at("/layers/%s/rollback", name), api.NewRollback{Snapshot: "a"}, nil)
		s.ok("POST", at("/layers/%s-again/merge", name), api.NewMerge{}, nil)
		s.ok("GET", at("/layers/%s/changes?since=%s@a", name, name), nil, nil)
		s.ok("GET", at("/layers/%s/log", name), nil, nil)
		s.ok("GET", at("/layers/%s/export", name), nil, nil)
		s.ok("GET", at("/layers/%s/usage", name), nil, nil)
		var l api.Layer
		s.ok("GET", at("/layers/%s", name), nil, &l)
		assert.Empty(t, l.Details)
		s.fails(api.KindPermissionDenied, "POST", at("/layers/%s/merge", name), api.NewMerge{}) // into a layer that it may only read
		s.ok("DELETE", at("/layers/%s-again", name), nil, nil)

		s.as(bob).fails(api.KindPermissionDenied, "GET", at("/layers/%s", name), nil)
		s.fails(api.KindPermissionDenied, "DELETE", at("/layers/%s", name), nil)
		s.fails(api.KindPermissionDenied, "POST", at("/layers/%s/forks", name), api.NewForks{Name: "dev.x"})
		s.as(alice)
	}
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "ci.own"}, nil)
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "ci.copy", Parent: "ci.own"}, nil)
	s.ok("GET", "/v1/layers/base/changes", nil, nil)
	s.ok("GET", "/v1/layers/base/snapshots", nil, nil)

	for _, c := range []struct {
		method, path string
		body         any
	}{
		{"POST", "/v1/layers", api.NewLayer{Name: "own"}},
		{"POST", "/v1/layers", api.NewLayer{Name: "dev.own"}},
		{"POST", "/v1/layers", api.NewLayer{Name: "ci.x", Parent: "base"}}, // it would be sealed
		{"POST", "/v1/layers/base/forks", api.NewForks{Name: "x"}},
		{"POST", "/v1/layers/base/forks", api.NewForks{Name: "fork:x"}},
		{"POST", "/v1/layers/secret/forks", api.NewForks{Name: "ci.x"}},
		{"POST", "/v1/layers/gone/forks", api.NewForks{Name: "ci.x"}}, // it does not tell whether there is one
		{"POST", "/v1/layers/base/snapshots", api.NewSnapshot{}},
		{"DELETE", "/v1/layers/base/snapshots/monday", nil},
		{"POST", "/v1/layers/base/rollback", api.NewRollback{Snapshot: "monday"}},
		{"PUT", "/v1/layers/base/limit", api.NewLimit{Size: "1G"}},
		{"PUT", "/v1/layers/docker:web/limit", api.NewLimit{Size: "1G"}}, // it may only be read
		{"PUT", "/v1/layers/docker:ci.own/limit", api.NewLimit{Size: "1G"}},
		{"DELETE", "/v1/layers/base", nil},
		{"DELETE", "/v1/layers/secret?force=true", nil},
		{"GET", "/v1/layers/secret", nil},
		{"GET", "/v1/layers/base/log", nil},
		{"GET", "/v1/layers/ci.image", nil}, // the name of an image leads to the layer of another
		{"GET", "/v1/layers/base/changes?since=secret", nil},
		{"GET", "/v1/layers/base/stream?from=secret", nil},
		{"GET", "/v1/layers/docker:db", nil},
		{"GET", "/v1/layers/containerd:default%2Fci.x", nil},
		{"POST", "/v1/layers/ci.own/merge", api.NewMerge{Into: "base"}},
	} {
		s.fails(api.KindPermissionDenied, c.method, c.path, c.body)
	}
	momentOf := s.momentOf("base", "monday")
	s.fails(api.KindPermissionDenied, "GET", at("/layers/%s", momentOf), nil)
}

func (s *served) momentOf(layer, snapshot string) string {
	s.t.Helper()
	m, err := s.stores.store.Live.Get(layer, snapshot)
	require.NoError(s.t, err)
	return m.Volume
}

// TestOutsiders: members of no namespace have no layers, and others are refused, whatever they ask for.
func TestOutsiders(t *testing.T) {
	s := newServed(t, nil).newBase()
	s.as(carol)
	assert.Empty(t, s.names("/v1/layers"))
	s.fails(api.KindPermissionDenied, "GET", "/v1/layers/base", nil)
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/base/forks", api.NewForks{})
	s.as(mallory)
	for _, p := range []string{"/v1/info", "/v1/openapi.yaml", "/v1/layers", "/v1/layers/base", "/nowhere"} {
		s.fails(api.KindPermissionDenied, "GET", p, nil)
	}
}

// TestToken: the token makes its bearer an admin, and another is refused.
func TestToken(t *testing.T) {
	s := newServed(t, nil).newBase().as(alice)
	for token, status := range map[string]int{strings.Repeat("t", 32): 200, "wrong": 401, "": 403} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://cowshed/v1/layers/base/log", http.NoBody)
		require.NoError(t, err)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := s.client().Do(r)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		assert.Equal(t, status, answer.StatusCode, token)
	}
}

// TestLimits: the limits of a namespace hold, for each way to make a layer or a snapshot.
func TestLimits(t *testing.T) {
	s := newServed(t, func(opts *Options) {
		ci := &opts.Namespaces[0]
		ci.Layers, ci.Bytes, ci.Lifetime = 4, 4<<30, time.Hour
	}).newBase().as(alice)
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a"})
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "none"})
	s.fails(api.KindPermissionDenied, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "1G", TTL: "2h"})
	s.fails(api.KindPermissionDenied, "POST", "/v1/layers", api.NewLayer{Name: "ci.a", Size: "1G"})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "1G", Count: 5})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "3G", Count: 2})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "7000P", Count: 3})
	var forks api.Forks
	begun := time.Now()
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "1G"}, &forks)
	assert.WithinRange(t, forks.Forks[0].Expires, begun.Add(time.Hour-time.Second), time.Now().Add(time.Hour+time.Second))
	s.ok("POST", "/v1/layers/docker:web/forks", api.NewForks{Name: "ci.b", Size: "2G", TTL: "1m"}, nil)
	s.fails(api.KindResourceExhausted, "PUT", "/v1/layers/ci.a/limit", api.NewLimit{Size: "3G"})
	s.fails(api.KindInvalidArgument, "PUT", "/v1/layers/ci.a/limit", api.NewLimit{Size: "none"})
	s.ok("PUT", "/v1/layers/ci.a/limit", api.NewLimit{Size: "2G"}, nil)
	s.ok("PUT", "/v1/layers/ci.a/limit", api.NewLimit{Size: "512M"}, nil)
	s.ok("POST", "/v1/layers/ci.a/snapshots", api.NewSnapshot{Name: "one"}, nil)
	s.ok("POST", "/v1/layers/ci.a/rollback", api.NewRollback{Snapshot: "one"}, nil)
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/ci.a/rollback", api.NewRollback{Snapshot: "one"})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/ci.a/snapshots", api.NewSnapshot{})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "1M"})
	s.ok("DELETE", "/v1/layers/ci.a/snapshots/one", nil, nil)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "1M"}, nil)
}

// TestFormerContentCounts: the data that a layer held before a rollback counts for the namespace. It does so too when a fork alone
// needs it.
func TestFormerContentCounts(t *testing.T) {
	s := newServed(t, func(opts *Options) { opts.Namespaces[0].Bytes = 100 << 20 }).newBase().as(alice)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "32M"}, nil)
	s.ok("POST", "/v1/layers/ci.a/snapshots", api.NewSnapshot{Name: "empty"}, nil)
	fill := func() { s.write(s.stores.store, "ci.a", "data", strings.Repeat("x", 24<<20)) }
	rollBack := func() { s.ok("POST", "/v1/layers/ci.a/rollback", api.NewRollback{Snapshot: "empty"}, nil) }
	fill()
	rollBack()
	fill()
	rollBack()
	fill()
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/ci.a/rollback", api.NewRollback{Snapshot: "empty"})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/ci.a/snapshots", api.NewSnapshot{})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.b", Size: "32M"})
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/ci.a/forks", api.NewForks{Name: "ci.b", Size: "1M"})
	s.ok("DELETE", "/v1/layers/ci.a/snapshots/before-rollback-1", nil, nil)
	s.ok("POST", "/v1/layers/ci.a/forks", api.NewForks{Name: "ci.b", Size: "1M"}, nil)
	s.ok("DELETE", "/v1/layers/ci.a", nil, nil)
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "80M"})
	s.ok("DELETE", "/v1/layers/ci.b", nil, nil)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "80M"}, nil)
}

// TestForksOfOthersCountForThem: the data of the moments of forks counts for the namespace of the forks, and not for that of the layer.
func TestForksOfOthersCountForThem(t *testing.T) {
	s := newServed(t, func(opts *Options) {
		opts.Namespaces[0].Bytes, opts.Namespaces[1].Bytes = 100<<20, 60<<20
		opts.Namespaces[1].Readable = []string{"ci.a", "base"}
	}).newBase().as(alice)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "32M"}, nil)
	s.write(s.stores.store, "ci.a", "data", strings.Repeat("x", 24<<20))
	s.as(bob).fails(api.KindResourceExhausted, "POST", "/v1/layers/ci.a/forks", api.NewForks{Name: "dev.a", Size: "40M"})
	for i := range 8 {
		s.ok("POST", "/v1/layers/ci.a/forks", api.NewForks{Name: fmt.Sprintf("dev.a%d", i), Size: "1M"}, nil)
	}
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "dev.b", Size: "30M"})
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "dev.b", Size: "1M"}, nil)
	s.as(alice).ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.b", Size: "60M"}, nil)
	s.as(bob)
	for i := range 8 {
		s.ok("DELETE", fmt.Sprintf("/v1/layers/dev.a%d", i), nil, nil)
	}
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "dev.c", Size: "59M"}, nil)
}

// TestEqualForksCountOnce: forks of a layer that has not changed hold the same data. Data that the layer writes between forks counts too.
func TestEqualForksCountOnce(t *testing.T) {
	s := newServed(t, func(opts *Options) { opts.Namespaces[0].Bytes = 100 << 20 }).newBase().as(alice)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "32M"}, nil)
	fill := func(size int) { s.write(s.stores.store, "ci.a", "data", strings.Repeat("x", size)) }
	fill(16 << 20)
	for i := range 8 { // the eighth would not fit otherwise
		s.ok("POST", "/v1/layers/ci.a/forks", api.NewForks{Name: fmt.Sprintf("ci.b%d", i), Size: "1M"}, nil)
	}
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "48M"})
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "24M"}, nil)
	s.ok("DELETE", "/v1/layers/ci.c", nil, nil)

	require.NoError(t, s.stores.store.Mounted(t.Context(), "ci.a", func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "more"), []byte(strings.Repeat("y", 8<<20)), 0o600)
	}))
	s.ok("POST", "/v1/layers/ci.a/forks", api.NewForks{Name: "ci.d", Size: "1M"}, nil)
	s.fails(api.KindResourceExhausted, "POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "40M"})
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.c", Size: "24M"}, nil)
}

// TestLimitsAtOnce: of many requests at once as many succeed as the limits allow, and no more.
func TestLimitsAtOnce(t *testing.T) {
	const most, requests = 7, 16
	s := newServed(t, func(opts *Options) { opts.Namespaces[0].Layers = most }).newBase().as(alice)
	for range 3 {
		var group errgroup.Group
		made := make(chan string, requests)
		for i := range requests {
			group.Go(func() error {
				source := []string{"base", "docker:web"}[i%2]
				a, err := s.try("POST", at("/layers/%s/forks", source), api.NewForks{})
				if err == nil && a.status == http.StatusCreated {
					made <- source
				}
				if err == nil && a.status != http.StatusCreated {
					assert.Equal(t, http.StatusInsufficientStorage, a.status, "%s", a.body)
				}
				return err
			})
		}
		require.NoError(t, group.Wait())
		assert.Len(t, made, most)
		names := append(s.names("/v1/layers"), s.names("/v1/layers?forks=true")...)
		assert.Len(t, names, most+1, "and base")
		for _, name := range names {
			if name != "base" {
				s.ok("DELETE", at("/layers/%s", name), nil, nil)
			}
		}
	}
}

// TestExpired: a member does not find a fork that has expired, nor a snapshot of it.
func TestExpired(t *testing.T) {
	s := newServed(t, nil).newBase()
	forks := s.stores.store.Live
	_, err := forks.Fork(t.Context(), "base", []string{"ci.a"}, live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(-time.Second)}})
	require.NoError(t, err)
	_, err = forks.Snapshot(t.Context(), "ci.a", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	_, err = forks.Fork(t.Context(), "ci.a", []string{"ci.c"}, live.ForkOptions{}) // so the other stays
	require.NoError(t, err)
	s.as(alice)
	for _, path := range []string{"/v1/layers/ci.a", "/v1/layers/ci.a/export", "/v1/layers/ci.a@one/stream", "/v1/layers/ci.a@one/changes"} {
		s.fails(api.KindNotFound, "GET", path, nil)
	}
	s.fails(api.KindNotFound, "POST", "/v1/layers/ci.a/forks", api.NewForks{Name: "ci.b"})
	s.fails(api.KindNotFound, "POST", "/v1/layers/ci.a/snapshots", api.NewSnapshot{})
	s.fails(api.KindNotFound, "POST", "/v1/layers/ci.c/merge", api.NewMerge{})
	s.as(0).ok("GET", "/v1/layers/ci.a", nil, nil)
}

// TestStaleLimit: a limit counts as a whole where another request has lowered it after the request found the layer.
func TestStaleLimit(t *testing.T) {
	s := newServed(t, func(opts *Options) { opts.Namespaces[0].Bytes = 4 << 30 }).newBase().as(alice)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "3G"}, nil)
	stale, err := s.stores.store.Layer(t.Context(), "ci.a")
	require.NoError(t, err)
	s.ok("PUT", "/v1/layers/ci.a/limit", api.NewLimit{Size: "1G"}, nil)
	s.ok("POST", "/v1/layers/docker:web/forks", api.NewForks{Name: "ci.a", Size: "3G"}, nil)
	n := s.server.namespaces[0]
	r := &request{Request: httptest.NewRequest(http.MethodPut, "/", http.NoBody), server: s.server}
	_, err = r.addLimit(n, s.stores.store, stale, 3<<30)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	done, err := r.addLimit(n, s.stores.store, stale, 1<<30)
	require.NoError(t, err)
	done()
	n.Bytes = 1 << 30 // less than there is
	done, err = r.addLimit(n, s.stores.store, stale, 1<<29)
	require.NoError(t, err)
	done()
	assert.Empty(t, n.pending)
}

// TestAdditions: an addition that fails makes room for a later one. An addition that waits for it ends with its context.
func TestAdditions(t *testing.T) {
	n := &namespace{Namespace: Namespace{Name: "ci", Layers: 2}}
	none := func(context.Context) (amount, error) { return amount{}, nil }
	first, err := n.add(t.Context(), amount{layers: 2}, none)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = n.add(ctx, amount{layers: 1}, none)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	time.AfterFunc(10*time.Millisecond, first)
	second, err := n.add(t.Context(), amount{layers: 1}, none)
	require.NoError(t, err)
	second()
	assert.Empty(t, n.pending)
}

// TestHugeAdditions: the sum of limits does not begin again at 0. An addition that alone is too much keeps nobody waiting.
func TestHugeAdditions(t *testing.T) {
	most := uint64(4 << 30)
	n := &namespace{Namespace: Namespace{Name: "ci", Bytes: most}}
	none := func(context.Context) (amount, error) { return amount{}, nil }
	all, err := n.add(t.Context(), amount{bytes: most}, none)
	require.NoError(t, err)
	defer all()
	_, err = n.add(t.Context(), amount{bytes: -most}, func(context.Context) (amount, error) {
		t.Error("it counts")
		return amount{}, nil
	})
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	assert.Len(t, n.pending, 1)
	assert.Equal(t, amount{layers: 3, bytes: ^uint64(0)}, amount{layers: 1, bytes: most}.plus(amount{layers: 2, bytes: -most}))
	assert.Equal(t, amount{bytes: most}, amount{}.plus(amount{bytes: most}))

	s := newServed(t, func(opts *Options) { opts.Namespaces[0].Bytes = most }).newBase().as(alice)
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a", Size: "1G"}, nil)
	s.ok("POST", "/v1/layers/ci.a/snapshots", api.NewSnapshot{Name: "s"}, nil)
	s.fails(api.KindInvalidArgument, "PUT", "/v1/layers/ci.a@s/limit", api.NewLimit{Size: "8G"})
}

// pendingAnswer notes the additions to a namespace that are under way when the answer begins.
type pendingAnswer struct {
	*httptest.ResponseRecorder
	n       *namespace
	pending []*addition
}

func (p *pendingAnswer) WriteHeader(status int) {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	p.pending = append(p.pending, p.n.pending...)
	p.ResponseRecorder.WriteHeader(status)
}

// TestAnswerAfterAddition: no addition is under way while a client reads the answer, since others wait for it.
func TestAnswerAfterAddition(t *testing.T) {
	s := newServed(t, func(opts *Options) { opts.Namespaces[0].Layers, opts.Namespaces[0].Bytes = 100, 100<<30 }).newBase()
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/v1/layers", `{"name": "ci.own", "size": "1G"}`},
		{"POST", "/v1/layers/ci.own/forks", `{"name": "ci.a", "size": "1G"}`},
		{"POST", "/v1/layers/ci.own/snapshots", `{"name": "one"}`},
		{"POST", "/v1/layers/ci.own/rollback", `{"snapshot": "one"}`},
		{"POST", "/v1/layers/ci.a/merge", `{}`},
		{"PUT", "/v1/layers/ci.own/limit", `{"size": "2G"}`},
		{"POST", "/v1/layers/ci.own/forks", `{"name": "ci.a", "size": "1G"}`}, // it fails
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		w := &pendingAnswer{ResponseRecorder: httptest.NewRecorder(), n: s.server.namespaces[0]}
		s.server.ServeHTTP(w, r.WithContext(context.WithValue(t.Context(), peerKey{}, peerOfUser(alice))))
		assert.Contains(t, []int{http.StatusOK, http.StatusCreated, http.StatusNoContent, http.StatusConflict}, w.Code, "%s", w.Body)
		assert.Empty(t, w.pending, "%s %s", c.method, c.path)
	}
}

// TestKernelPeer: the kernel tells the user and the groups with which a process has connected.
func TestKernelPeer(t *testing.T) {
	testfs.Root(t)
	socket := fmt.Sprintf("@cowshed-%d", os.Getpid()) // without a directory that others cannot enter
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	groups := make([]uint32, 100) // more than there is room for at first
	for i := range groups {
		groups[i] = uint32(10_000 + i)
	}
	dialled := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		_, _, errno := unix.Syscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
		if errno == 0 {
			_, _, errno = unix.Syscall(unix.SYS_SETRESGID, 4321, 4321, 4321)
		}
		if errno != 0 {
			dialled <- errno
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			// The real user stays, so that the thread may go on.
			_, _, errno = unix.Syscall(unix.SYS_SETRESUID, ^uintptr(0), 1234, 0)
			if errno != 0 {
				err = errno
			}
		}
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
		}
		dialled <- err
	}()
	require.NoError(t, testfs.Receive(t, dialled))
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	p, err := kernelPeer(conn)
	require.NoError(t, err)
	assert.Equal(t, uint32(1234), p.UID)
	assert.Equal(t, slices.Concat(groups, []uint32{4321}), p.Groups)
}

// TestMembersGetContentAlone: exports and streams of members have nothing of the layers below, and nothing of an image whose name is
// that of the layer.
func TestMembersGetContentAlone(t *testing.T) {
	s := newServed(t, func(opts *Options) { opts.Namespaces[0].Readable = []string{"shared"} })
	ctx, store := t.Context(), s.stores.store
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "secret"}, nil)
	s.write(store, "secret", "password", "hunter2")
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "shared", Parent: "secret"}, nil)
	require.NoError(t, store.Mounted(ctx, "shared", func(dir string) error { return os.Remove(filepath.Join(dir, "password")) }))
	s.write(store, "shared", "public", "1")
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "other"}, nil)
	s.write(store, "other", "others", "2")
	for _, name := range []string{"shared", "ci.own"} { // images with the names of layers
		s.ok("POST", "/v1/layers/other/promote", api.NewImage{To: name}, nil)
	}
	assert.Subset(t, s.exportedNames("/v1/layers/shared/export"), []string{"password", "public", ".wh.password"}, "root gets the layer, not the image")

	s.as(alice)
	s.ok("POST", "/v1/layers/shared/forks", api.NewForks{Name: "ci.own"}, nil)
	for _, path := range []string{"/v1/layers/shared/export", "/v1/layers/ci.own/export", "/v1/layers/shared/export?format=oci-archive&compress=none"} {
		assert.Equal(t, []string{"public"}, s.exportedNames(path), path)
	}
	s.fails(api.KindPermissionDenied, "GET", "/v1/layers/shared/stream?withParents=true", nil)
	s.ok("GET", "/v1/layers/shared/stream", nil, nil)
	s.fails(api.KindPermissionDenied, "GET", "/v1/layers/ci.own/stream?withParents=true", nil)
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "ci.below"}, nil)
	s.ok("POST", "/v1/layers", api.NewLayer{Name: "ci.above", Parent: "ci.below"}, nil)
	s.ok("GET", "/v1/layers/ci.above/stream?withParents=true", nil, nil)
}

// exportedNames are the files in the layers of an exported image.
func (s *served) exportedNames(path string) (names []string) {
	s.t.Helper()
	a := s.send("GET", path, nil)
	require.Equal(s.t, http.StatusOK, a.status, "%s", a.body)
	for r := tar.NewReader(bytes.NewReader(a.body)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		require.NoError(s.t, err)
		data, err := io.ReadAll(r)
		require.NoError(s.t, err)
		if h.Typeflag == tar.TypeReg && !json.Valid(data) {
			names = append(names, tarNames(s.t, data)...)
		}
	}
}
