package apiserver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/testfs"
)

// dial connects as the user that as has set.
func (s *served) dial() net.Conn {
	s.t.Helper()
	conn, err := net.Dial("unix", s.socket)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close() })
	require.NoError(s.t, conn.SetReadDeadline(time.Now().Add(testfs.Patience)))
	return conn
}

// isIdle reports whether no request is under way.
func (s *served) isIdle() bool {
	s.server.requests.mu.Lock()
	defer s.server.requests.mu.Unlock()
	return len(s.server.requests.senders) == 0
}

// TestHostileBodies: bodies that are too large, malformed or of something else are refused.
func TestHostileBodies(t *testing.T) {
	s := newServed(t, nil).newBase().as(alice)
	const forks = "/v1/layers/base/forks"
	s.fails(api.KindTooLarge, "POST", forks, `{"name": "`+strings.Repeat("a", maxBody)+`"}`)
	for name, body := range map[string]string{
		"none": "", "no JSON": "name=ci.a", "no object": `[]`, "two": `{"name": "ci.a"} {}`, "more": `{"name": "ci.a"}]`,
		"unknown field": `{"name": "ci.a", "into": "/etc"}`, "wrong type": `{"count": "8"}`, "deep": strings.Repeat(`{"labels":`, 20_000),
		"cut off": `{"name": "ci.a`, "negative": `{"count": -1}`, "many": `{"count": 10001}`, "huge": `{"count": 1e300}`,
		"labels": `{"count": 10000, "labels": {"a": "` + strings.Repeat("a", 100_000) + `"}}`, "control": `{"labels": {"a": "\u0000"}}`,
		"label bytes": `{"labels": {"a": "` + strings.Repeat("a", maxLabelBytes/2) + `", "b": "` + strings.Repeat("b", maxLabelBytes/2) + `"}}`,
		"ttl":         `{"ttl": "-1s"}`, "long ttl": `{"ttl": "9999999h"}`, "size": `{"size": "much"}`, "negative size": `{"size": "-1G"}`,
		"long name": `{"count": 10000, "name": "ci.` + strings.Repeat("a", 100_000) + `"}`,
		"path":      `{"name": "ci./../x"}`, "zero": `{"name": "ci.\u0000"}`, "snapshot": `{"name": "ci.a@b"}`,
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.fails(api.KindInvalidArgument, "POST", forks, body)
		})
	}
	s.t = t
	s.ok("POST", forks, api.NewForks{Name: "ci.labels", Labels: map[string]string{"a": strings.Repeat("a", maxLabelBytes-1)}}, nil)
	s.ok("DELETE", "/v1/layers/ci.labels", nil, nil)
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/ci.a/merge", api.NewMerge{Paths: []string{"relative"}})
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/ci.a/merge", api.NewMerge{Paths: make([]string, maxPaths+1)})
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/ci.a/merge", api.NewMerge{Strategy: "mine"})
	s.fails(api.KindInvalidArgument, "POST", "/v1/layers/ci.a/snapshots", api.NewSnapshot{Message: strings.Repeat("a", maxMessage+1)})
	s.fails(api.KindInvalidArgument, "GET", "/v1/layers/base", "body")
	assert.Equal(t, []string{"base"}, s.names("/v1/layers"), "nothing was made")
}

// TestBounds: the server takes values within the bounds of the description, and refuses others.
func TestBounds(t *testing.T) {
	s := newServed(t, nil).newBase()
	long := func(n int) string { return strings.Repeat("a", n) }
	for _, c := range []struct {
		method, path, body string
		within             bool
	}{
		{"POST", "/layers", `{"name": "` + long(maxName+1) + `"}`, false},
		{"POST", "/layers", `{"name": "` + long(maxName) + `"}`, true},
		{"POST", "/layers", `{"size": "` + long(maxShort+1) + `"}`, false},
		{"POST", "/layers", `{"size": "` + strings.Repeat("0", maxShort-2) + `1G"}`, true},
		{"POST", "/layers", `{"rootStyle": "other"}`, false},
		{"POST", "/layers", `{"parent": "` + long(maxRef+1) + `"}`, false},
		{"POST", "/layers/base/forks", `{"name": "` + long(maxName+1) + `"}`, false},
		{"POST", "/layers/base/forks", `{"size": "` + strings.Repeat("0", maxShort) + `1G"}`, false},
		{"POST", "/layers/base/forks", `{"ttl": "` + strings.Repeat("0", maxShort) + `1h"}`, false},
		{"POST", "/layers/base/forks", `{"ttl": "` + strings.Repeat("0", maxShort-2) + `1h"}`, true},
		{"POST", "/layers/base/snapshots", `{"name": "` + long(maxName+1) + `"}`, false},
		{"POST", "/layers/base/snapshots", `{"name": "` + long(maxName) + `"}`, true},
		{"POST", "/layers/base/snapshots", `{"message": "` + long(maxMessage+1) + `"}`, false},
		{"POST", "/layers/base/snapshots", `{"message": "` + long(maxMessage) + `"}`, true},
		{"POST", "/layers/base/rollback", `{}`, false},
		{"POST", "/layers/base/rollback", `{"snapshot": "` + long(maxName+1) + `"}`, false},
		{"POST", "/layers/base/rollback", `{"snapshot": "` + long(maxName) + `"}`, true},
		{"DELETE", "/layers/base/snapshots/" + long(maxName+1), "", false},
		{"DELETE", "/layers/base/snapshots/" + long(maxName), "", true},
		{"POST", "/layers/base/merge", `{"into": "` + long(maxRef+1) + `"}`, false},
		{"PUT", "/layers/base/limit", `{}`, false},
		{"PUT", "/layers/base/limit", `{"size": "` + strings.Repeat("0", maxShort) + `1G"}`, false},
		{"PUT", "/layers/base/limit", `{"size": "none"}`, true},
		{"POST", "/layers/base/promote", `{}`, false},
		{"POST", "/layers/base/promote", `{"to": "oci:/` + long(maxTarget) + `"}`, false},
		{"POST", "/layers/base/promote", `{"to": "x:1", "compress": "gz"}`, false},
		{"GET", "/layers/base/export?name=" + long(maxImage+1), "", false},
		{"GET", "/layers/base/export?name=" + long(100), "", true},
		{"GET", "/layers/base/export?name=", "", false},
		{"GET", "/layers/base/export?compress=", "", false},
		{"GET", "/layers/base/export?compress=plain", "", false},
		{"GET", "/layers/base/export?compress=gzip", "", true},
		{"GET", "/layers/base/export?format=", "", false},
		{"GET", "/layers/base/diff?compress=zst", "", false},
		{"GET", "/layers/base/diff?since=", "", false},
		{"GET", "/layers/base/stream?from=", "", false},
		{"GET", "/layers?forks=", "", false},
		{"GET", "/layers?forks=1", "", false},
		{"GET", "/layers?forks=false", "", true},
	} {
		var body any
		if c.body != "" {
			body = c.body
		}
		a := s.send(c.method, api.Prefix+c.path, body)
		if c.within {
			assert.Less(t, a.status, 300, "%s %.80s %.80s: %.300s", c.method, c.path, c.body, a.body)
		} else {
			assert.Equal(t, http.StatusBadRequest, a.status, "%s %.80s %.80s: %.300s", c.method, c.path, c.body, a.body)
		}
	}
}

// TestHostileNames: names that are no layers, and paths that are none, are refused.
func TestHostileNames(t *testing.T) {
	s := newServed(t, nil).newBase()
	for _, uid := range []uint32{0, alice} {
		s.as(uid)
		for _, name := range []string{
			"%2e%2e", "..%2f..%2fetc", "ci.%2f..%2fbase", "a%00b", "%ff", "ci.a%0a", strings.Repeat("a", 600), "ci." + strings.Repeat("a", 300),
			"@", "base@", "base@none", "ci.@", "docker:", "docker:@", "containerd:%2f", "fork:", "fork:..", "docker:gone", "-ci.a", "ci.a%20b", "ci.%e2%80%ae",
		} {
			for _, method := range []string{"GET", "DELETE"} {
				a := s.send(method, "/v1/layers/"+name, nil)
				assert.Contains(t, []int{400, 403, 404}, a.status, "%s %s: %s", method, name, a.body)
			}
			for _, op := range []string{"forks", "snapshots", "merge"} {
				a := s.send("POST", "/v1/layers/"+name+"/"+op, "{}")
				assert.Contains(t, []int{400, 403, 404}, a.status, "%s %s: %s", op, name, a.body)
			}
		}
		for _, path := range []string{"/", "/v1", "/v2/layers", "/v1/layers/", "/v1//layers", "/v1/layers/../info", "/v1/layers/base/none", "/v1/layers/base/"} {
			s.fails(api.KindNotFound, "GET", path, nil)
		}
		s.fails(api.KindMethodNotAllowed, "PUT", "/v1/layers", "{}")
		s.fails(api.KindMethodNotAllowed, "OPTIONS", "/v1/layers/base", nil)
		assert.Equal(t, http.StatusMethodNotAllowed, s.send("HEAD", "/v1/layers/base/export", nil).status)
		for _, route := range []string{
			"GET /openapi.yaml", "GET /info", "GET /layers", "POST /layers", "GET /layers/base", "DELETE /layers/base", "POST /layers/base/forks",
			"GET /layers/base/snapshots", "POST /layers/base/snapshots", "DELETE /layers/base/snapshots/x", "POST /layers/base/rollback",
			"POST /layers/base/merge", "GET /layers/base/changes", "GET /layers/base/diff", "GET /layers/base/log", "GET /layers/base/usage",
			"PUT /layers/base/limit", "GET /layers/base/export", "GET /layers/base/stream", "POST /layers/base/promote",
		} {
			method, path, _ := strings.Cut(route, " ")
			for _, query := range []string{"?none=1", "?%zz", "?a;b", "?force=true&force=%"} {
				e := s.fails(api.KindInvalidArgument, method, api.Prefix+path+query, nil)
				assert.Regexp(t, "unknown parameter|malformed", e.Message)
			}
		}
		for _, query := range []string{"?whole=perhaps", "?since=a&since=b", "?sincE=base", "?since=%00", "?walk=2"} {
			s.fails(api.KindInvalidArgument, "GET", "/v1/layers/base/changes"+query, nil)
		}
	}
}

// short is how long an impatient server waits.
const short = 300 * time.Millisecond

// patient is a server that does not end a request because somebody keeps it waiting.
func patient(opts *Options) {
	opts.StopTimeout = time.Hour
	opts.patience.rate = 0
}

// TestSlowClients: clients that read slowly keep nobody else waiting.
func TestSlowClients(t *testing.T) {
	s := newServed(t, patient).newBase()
	s.server.walks = newGate(requestBounds)
	s.write(s.stores.store, "base", "large", strings.Repeat("cowshed ", 1<<20))
	giveUp := make([]func(), 0, requestBounds.each)
	for range requestBounds.each {
		giveUp = append(giveUp, s.stall(alice, "/v1/layers/base/diff"))
	}
	a := s.send("GET", "/v1/info", nil)
	assert.Equal(t, http.StatusTooManyRequests, a.status)
	assert.NotEmpty(t, a.header.Get("Retry-After"))
	s.as(bob).ok("GET", "/v1/info", nil, nil)
	s.as(0).ok("GET", "/v1/layers", nil, nil)
	for _, do := range giveUp {
		do()
	}
	require.Eventually(t, s.isIdle, testfs.Patience, 10*time.Millisecond)
	s.as(alice).ok("GET", "/v1/info", nil, nil)
}

// TestSlowReaders: clients that read slowly lose their connections.
func TestSlowReaders(t *testing.T) {
	s := newServed(t, func(opts *Options) { opts.patience.write = short }).newBase()
	s.server.walks = newGate(requestBounds)
	s.write(s.stores.store, "base", "large", strings.Repeat("cowshed ", 1<<20))
	readers := make([]net.Conn, 0, requestBounds.each)
	for range requestBounds.each {
		conn := s.as(alice).dial()
		_, err := io.WriteString(conn, "GET /v1/layers/base/diff HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n")
		require.NoError(t, err)
		readers = append(readers, conn)
	}
	for _, conn := range readers { // so that each has begun
		_, err := conn.Read(make([]byte, 1))
		require.True(t, err == nil || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET), "%v", err)
	}
	require.Eventually(t, s.isIdle, testfs.Patience, 10*time.Millisecond, "they are given up")
	for _, conn := range readers {
		n, err := io.Copy(io.Discard, conn)
		require.True(t, err == nil || errors.Is(err, syscall.ECONNRESET), "%v", err)
		assert.Less(t, n, int64(8<<20), "the answer is cut off")
	}
}

// TestSlowSenders: clients that send slowly lose their connections.
func TestSlowSenders(t *testing.T) {
	s := newServed(t, func(opts *Options) { opts.patience.header, opts.patience.body = short, short }).newBase().as(alice)
	for _, sent := range []string{
		"GET /v1/in", "GET /v1/info HTTP/1.1\r\nHost:", "POST /v1/layers/base/forks HTTP/1.1\r\nHost: c\r\nContent-Length: 100\r\n\r\n{",
		"POST /v1/layers/base/forks HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{",
		// Bodies that no handler reads.
		"POST /v1/info HTTP/1.1\r\nHost: c\r\nContent-Length: 100\r\n\r\n{", "POST /v1/none HTTP/1.1\r\nHost: c\r\nContent-Length: 100\r\n\r\n{",
		"GET /v1/info HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{",
		"POST /v1/layers/base/forks HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer x\r\nContent-Length: 100\r\n\r\n{",
	} {
		conn := s.dial()
		_, err := io.WriteString(conn, sent)
		require.True(t, err == nil || errors.Is(err, syscall.EPIPE), "%v", err)
		_, err = io.Copy(io.Discard, conn)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "%q", sent)
	}
}

// slowReader is an answer of which the client reads each part in a given time.
type slowReader struct {
	http.ResponseWriter
	part, all time.Duration
	deadline  time.Time
}

func (r *slowReader) SetWriteDeadline(deadline time.Time) error {
	r.deadline = deadline
	return nil
}

func (r *slowReader) Write(data []byte) (int, error) {
	if left := time.Until(r.deadline); left < r.part {
		time.Sleep(left)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(r.part)
	r.all += r.part
	return len(data), nil
}

// TestRate: a user but root does not hold a layer for as long as it likes by reading a little at a time.
func TestRate(t *testing.T) {
	for rate, within := range map[int64]time.Duration{0: time.Hour, 1 << 30: time.Second, 1 << 20: 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := &slowReader{part: 100 * time.Millisecond}
			a := newAnswer(w, time.Second)
			a.rate = rate
			_, err := a.Write(make([]byte, 8<<20))
			assert.Equal(t, rate == 0, err == nil, "%v", err)
			assert.LessOrEqual(t, w.all, within)
		})
	}

	s := newServed(t, nil)
	rates := make(chan int64, 1)
	s.server.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rates <- r.Context().Value(requestKey{}).(*request).out.rate
		w.WriteHeader(http.StatusNoContent)
	})
	for uid, want := range map[uint32]int64{0: 0, alice: usualPatience.rate} {
		s.as(uid).ok("GET", "/v1/info", nil, nil)
		assert.Equal(t, want, testfs.Receive(t, rates), uid)
	}
}

// stall sends a request whose answer is large, and reads no more than its beginning. It returns a function that gives up.
func (s *served) stall(uid uint32, path string) (giveUp func()) {
	s.t.Helper()
	conn := s.as(uid).dial()
	_, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: c\r\n\r\n")
	require.NoError(s.t, err)
	_, err = io.ReadFull(conn, make([]byte, 1000))
	require.NoError(s.t, err)
	return func() { require.NoError(s.t, conn.Close()) }
}

// TestManyExports: exports that clients do not read take up the disk a few times only.
func TestManyExports(t *testing.T) {
	s := newServed(t, patient).newBase()
	s.write(s.stores.store, "base", "large", strings.Repeat("cowshed ", 1<<20))
	const path, of = "/v1/layers/base/export", "/v1/layers/dev.a/export"
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "dev.a"}, nil)
	first := s.stall(alice, path)
	s.fails(api.KindTooManyRequests, "GET", path, nil)
	second := s.stall(bob, of)
	s.fails(api.KindTooManyRequests, "GET", of, nil)
	s.as(0).ok("GET", path, nil, nil)
	first()
	second()
	require.Eventually(t, s.isIdle, testfs.Patience, 10*time.Millisecond)
	s.as(alice).ok("GET", path, nil, nil)
}

// TestManyWalks: a user reads few trees at once, and others can meanwhile.
func TestManyWalks(t *testing.T) {
	s := newServed(t, patient).newBase()
	s.write(s.stores.store, "base", "large", strings.Repeat("cowshed ", 1<<20))
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "dev.a"}, nil)
	s.ok("POST", "/v1/layers/base/snapshots", api.NewSnapshot{Name: "one"}, nil)
	giveUp := []func(){s.stall(alice, "/v1/layers/base/diff"), s.stall(alice, "/v1/layers/base@one/stream")}
	for _, what := range []string{"diff", "changes", "usage", "stream"} {
		s.as(alice).fails(api.KindTooManyRequests, "GET", at("/layers/base/%s", what), nil)
		s.as(bob).ok("GET", at("/layers/dev.a/%s", what), nil, nil)
		s.as(0).ok("GET", at("/layers/base/%s", what), nil, nil)
	}
	for _, do := range giveUp {
		do()
	}
	require.Eventually(t, s.isIdle, testfs.Patience, 10*time.Millisecond)
	s.as(alice).ok("GET", "/v1/layers/base/usage", nil, nil)
}

// TestManyConnections: a user cannot use up the connections of others. Those that are too many say so.
func TestManyConnections(t *testing.T) {
	s := newServed(t, patient).as(alice)
	for range connectionBounds.each {
		conn := s.dial()
		_, err := io.WriteString(conn, "GET /v1/info HTTP/1.1\r\nHost: c\r\n\r\n")
		require.NoError(t, err)
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
	}
	for method, path := range map[string]string{"GET": "/v1/info", "POST": "/v1/layers/base/forks"} {
		require.Eventually(t, func() bool { // it is closed without an answer where reading the request takes too long
			a, err := s.try(method, path, nil)
			return err == nil && a.status == http.StatusTooManyRequests && bytes.Contains(a.body, []byte("connections"))
		}, testfs.Patience, time.Millisecond)
	}
	silent := make([]net.Conn, 0, 2*maxRefusals)
	for range 2 * maxRefusals {
		silent = append(silent, s.dial())
	}
	for _, conn := range silent {
		_, err := io.ReadAll(conn)
		require.True(t, err == nil || errors.Is(err, syscall.ECONNRESET), "those that send nothing are closed: %v", err)
	}
	s.as(bob).ok("GET", "/v1/info", nil, nil)
	s.as(0).ok("GET", "/v1/info", nil, nil)
}

// TestFlood: thousands of requests of many kinds leave neither memory nor goroutines behind.
func TestFlood(t *testing.T) {
	s := newServed(t, nil).newBase().as(alice)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	const clients, each = 40, 50
	var answers [600]atomic.Int64
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			for j := range each {
				var a answered
				var err error
				switch j % 5 {
				case 0:
					a, err = s.try("GET", fmt.Sprintf("/v1/layers/ci.%d-%d", i, j), nil)
				case 1:
					a, err = s.try("POST", "/v1/layers/base/forks", strings.Repeat("[", 100_000))
				case 2:
					a, err = s.try("GET", "/v1/layers/base/export", nil)
				case 3:
					a, err = s.try("DELETE", "/v1/layers/base", nil)
				case 4:
					a, err = s.try("GET", "/v1/layers/secret/diff?since="+strings.Repeat("x", 1000), nil)
				}
				if err == nil {
					answers[a.status].Add(1)
				}
			}
		})
	}
	group.Wait()
	var all int64
	for status := range answers {
		if n := answers[status].Load(); n > 0 {
			assert.Contains(t, []int{200, 400, 403, 404, 429}, status)
			all += n
		}
	}
	assert.Greater(t, all, int64(clients*each/2), "others were too many connections")
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+2 }, testfs.Patience, 10*time.Millisecond)
	assert.Less(t, heap(), before+8<<20)
	require.Eventually(t, s.isIdle, testfs.Patience, 10*time.Millisecond)
	s.ok("GET", "/v1/info", nil, nil)
}

// TestGivenUp: the end of a connection ends the request.
func TestGivenUp(t *testing.T) {
	s := newServed(t, patient).newBase()
	s.write(s.stores.store, "base", "large", strings.Repeat("cowshed ", 1<<20))
	conn := s.as(alice).dial()
	_, err := io.WriteString(conn, "GET /v1/layers/base/export HTTP/1.1\r\nHost: c\r\n\r\n")
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1000))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Eventually(t, s.isIdle, testfs.Patience, 10*time.Millisecond)
	require.NoError(t, s.stop(), "and no request is left for the end of the server")
	w := httptest.NewRecorder()
	s.server.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/info", http.NoBody))
	assert.Equal(t, http.StatusServiceUnavailable, w.Code, "after that none begins")
}

// TestOldClients: a client of HTTP/1.0, which cannot tell that an answer is cut off, gets no streams.
func TestOldClients(t *testing.T) {
	s := newServed(t, nil).newBase()
	for path, status := range map[string]int{
		"base": http.StatusOK, "base/changes": http.StatusOK,
		"base/diff": http.StatusNotImplemented, "base/export": http.StatusNotImplemented, "base/stream": http.StatusNotImplemented,
	} {
		conn := s.dial()
		_, err := io.WriteString(conn, "GET /v1/layers/"+path+" HTTP/1.0\r\n\r\n")
		require.NoError(t, err)
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		assert.Equal(t, status, answer.StatusCode, path)
	}
}

// TestStopAtOnce: clients that stall do not keep the server from its end. A change goes on.
func TestStopAtOnce(t *testing.T) {
	s := newServed(t, patient).newBase()
	s.write(s.stores.store, "base", "large", strings.Repeat("cowshed ", 1<<20))
	begun, goOn := make(chan struct{}), make(chan struct{})
	letGoOn := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(letGoOn)
	s.server.handler = func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodDelete {
				assert.NoError(t, r.Context().Value(requestKey{}).(*request).beginChange())
				close(begun)
				<-goOn
			}
			next.ServeHTTP(w, r)
		}
	}(s.server.handler)
	s.as(alice)
	for _, sent := range []string{
		"GET /v1/layers/base/diff HTTP/1.1\r\nHost: c\r\n\r\n", "GET /v1/layers/base/export HTTP/1.1\r\nHost: c\r\n\r\n", "",
		"GET /v1/in", "POST /v1/layers/base/forks HTTP/1.1\r\nHost: c\r\nContent-Length: 100\r\n\r\n{",
	} {
		conn := s.dial()
		_, err := io.WriteString(conn, sent)
		require.NoError(t, err)
		if strings.Contains(sent, "GET /v1/layers") {
			_, err = io.ReadFull(conn, make([]byte, 1000))
			require.NoError(t, err)
		}
	}
	s.ok("POST", "/v1/layers/base/forks", api.NewForks{Name: "ci.a"}, nil)
	removed := make(chan answered, 1)
	go func() {
		a, _ := s.try("DELETE", "/v1/layers/ci.a", nil)
		removed <- a
	}()
	testfs.Begun(t, begun, removed)
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	require.Eventually(t, func() bool {
		s.server.requests.mu.Lock()
		defer s.server.requests.mu.Unlock()
		return s.server.requests.others == 1
	}, testfs.Patience, 10*time.Millisecond, "all others have ended")
	letGoOn()
	assert.Equal(t, http.StatusNoContent, testfs.Receive(t, removed).status)
	require.NoError(t, testfs.Receive(t, stopped))
}
