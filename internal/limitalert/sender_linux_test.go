package limitalert

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

var alert = Alert{
	Percent: 95, Held: 960, Limit: 1000, Namespace: "k8s.io", ID: "0123", PodNamespace: "shop", Pod: "web-0", Container: "$(id); app",
	Service: "snapshots", Volume: "s-A.x", Time: time.Date(2026, 11, 30, 1, 2, 3, 0, time.UTC),
}

// script makes a command.
func script(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "command")
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o700))
	return file
}

// TestCommand: a command gets its arguments as they are, the variables, and the alert as JSON, and nothing else of this
// process.
func TestCommand(t *testing.T) {
	t.Setenv("SECRET", "key")
	out := filepath.Join(t.TempDir(), "out")
	send := commandOf([]string{script(t, `printf '%s\n' "$1" "$2" "$(env | grep -v ^PWD= | sort)" >"$1"; cat >>"$1"`), out, "$(id) `id`"})
	body, err := json.Marshal(alert)
	require.NoError(t, err)
	require.NoError(t, send(t.Context(), alert, body))
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	want := []string{
		out, "$(id) `id`",
		"COWSHED_CONTAINER=$(id); app", "COWSHED_HELD=960", "COWSHED_ID=0123", "COWSHED_LIMIT=1000", "COWSHED_NAMESPACE=k8s.io",
		"COWSHED_PERCENT=95", "COWSHED_POD=web-0", "COWSHED_POD_NAMESPACE=shop", "COWSHED_SERVICE=snapshots",
		"COWSHED_TIME=2026-11-30T01:02:03Z", "COWSHED_VOLUME=s-A.x",
	}
	lines := strings.Split(string(text), "\n")
	var got []string
	for _, line := range lines[:len(lines)-1] {
		if name, _, _ := strings.Cut(line, "="); name != "PATH" && name != "_" && name != "SHLVL" {
			got = append(got, line)
		}
	}
	assert.Equal(t, want, got)
	assert.JSONEq(t, `{"percent":95,"held":960,"limit":1000,"namespace":"k8s.io","id":"0123","podNamespace":"shop","pod":"web-0",
		"container":"$(id); app","service":"snapshots","volume":"s-A.x","time":"2026-11-30T01:02:03Z"}`, lines[len(lines)-1])
}

// TestFailingCommand: the error has the beginning of the output.
func TestFailingCommand(t *testing.T) {
	err := commandOf([]string{script(t, "echo why >&2; yes | head -c 100000; exit 3")})(t.Context(), alert, nil)
	require.ErrorContains(t, err, "exit status 3")
	assert.ErrorContains(t, err, "why")
	assert.Less(t, len(err.Error()), 8<<10)
	require.Error(t, commandOf([]string{filepath.Join(t.TempDir(), "none")})(t.Context(), alert, nil))
}

// TestCommandThatDoesNotEnd: it is killed with the processes that it has started.
func TestCommandThatDoesNotEnd(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	send := commandOf([]string{script(t, `sleep 1000 & echo $! >"$1.new"; mv "$1.new" "$1"; wait`), out})
	go func() { ended <- send(ctx, alert, nil) }()
	var text []byte
	require.Eventually(t, func() (read bool) {
		var err error
		text, err = os.ReadFile(out)
		return err == nil
	}, testfs.Patience, time.Millisecond)
	cancel()
	require.ErrorIs(t, testfs.Result(ended), context.Canceled)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	assert.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // a zombie, where nobody waits for orphans
		return err != nil && syscall.Kill(pid, 0) == syscall.ESRCH || strings.Contains(string(stat), ") Z ")
	}, testfs.Patience, time.Millisecond)
}

// counts are the values of the counter of sent alerts.
func counts(t *testing.T, s *Sender) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(s)
	families, err := registry.Gather()
	require.NoError(t, err)
	found := make(map[string]float64)
	for _, family := range families {
		for _, series := range family.GetMetric() {
			var labels []string
			for _, pair := range series.GetLabel() {
				labels = append(labels, pair.GetValue())
			}
			if n := series.GetCounter().GetValue(); n != 0 {
				found[strings.Join(labels, " ")] = n
			}
		}
	}
	return found
}

// TestWebhookTakes: an answer of success counts as one, whatever its number.
func TestWebhookTakes(t *testing.T) {
	codes := []int{http.StatusOK, http.StatusAccepted, http.StatusNoContent}
	next := make(chan int, len(codes))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(<-next) }))
	defer server.Close()
	s := NewSender(nil, server.URL, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	for _, code := range codes {
		next <- code
		s.Send(alert)
	}
	want := map[string]float64{"ok webhook": float64(len(codes))}
	require.Eventually(t, func() bool { return maps.Equal(want, counts(t, s)) }, testfs.Patience, time.Millisecond)
	cancel()
	testfs.Within(t, running.Wait)
	assert.Equal(t, want, counts(t, s))
}

// TestSend: a webhook that does not answer makes nobody wait, alerts beyond the queue are dropped and counted, and a command
// runs although the webhook fails.
func TestSend(t *testing.T) {
	asked, answer := make(chan string, queueLength+2), make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		asked <- r.Header.Get("Content-Type") + " " + string(body)
		<-answer
		http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	letAnswer := sync.OnceFunc(func() { close(answer) })
	defer letAnswer()
	var log strings.Builder
	s := NewSender([]string{"/bin/true"}, server.URL+"/secret", slog.New(slog.NewTextHandler(&log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	s.Send(alert)
	assert.Contains(t, testfs.Receive(t, asked), `application/json {"percent":95,`)
	for range queueLength + 3 {
		s.Send(alert)
	}
	assert.Equal(t, map[string]float64{"ok command": 1, "dropped command": 3, "dropped webhook": 3}, counts(t, s))
	answer <- struct{}{}
	testfs.Receive(t, asked) // the second, which is not answered: so the others wait
	cancel()
	testfs.Within(t, running.Wait)
	letAnswer()
	got := counts(t, s)
	assert.GreaterOrEqual(t, got["failed webhook"], 1.0)
	assert.Contains(t, log.String(), "the webhook says 307")
	for _, name := range []string{byCommand, byWebhook} {
		all := got["ok "+name] + got["failed "+name] + got["dropped "+name]
		assert.InDelta(t, 1+queueLength+3, all, 0, "each alert has an outcome, also when the daemon stops: %v", got)
	}
	assert.Greater(t, got["dropped command"], 3.0)
	assert.Contains(t, log.String(), fmt.Sprintf("reports=%.0f", got["dropped command"]-3))

	server.Close()
	err := webhookOf(server.URL+"/secret")(t.Context(), alert, nil)
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "secret")
	assert.NotContains(t, log.String(), "secret")
}
