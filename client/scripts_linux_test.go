package client_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// backup runs examples/api/backup.sh.
func backup(t *testing.T, socket string, args ...string) (stderr string, err error) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"../examples/api/backup.sh"}, args...)...)
	return runScript(t, cmd, socket, io.Discard)
}

// upgrade runs examples/api/upgrade.py.
func upgrade(t *testing.T, socket string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.Command("python3", append([]string{"../examples/api/upgrade.py"}, args...)...)
	var out bytes.Buffer
	stderr, err = runScript(t, cmd, socket, &out)
	return out.String(), stderr, err
}

func runScript(t *testing.T, cmd *exec.Cmd, socket string, stdout io.Writer) (stderr string, err error) {
	t.Helper()
	cmd.Env = append(os.Environ(), "COWSHED_API="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell starts it, for tests of Ctrl-C
	var problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &problems
	err = testfs.Run(t, cmd)
	return problems.String(), err
}

// assertNone asserts that a directory is empty.
func assertNone(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestBackupScript(t *testing.T) {
	content := make([]byte, 5<<20)
	_, _ = rand.Read(content)
	s := serve(t).create("web", "data", string(content))
	dir := t.TempDir()
	file := filepath.Join(dir, "web.tar.gz")
	stderr, err := backup(t, s.socket, "web", file)
	require.NoError(t, err, stderr)
	assert.Empty(t, s.snapshots("web"))

	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	plain, err := gzip.NewReader(f)
	require.NoError(t, err)
	r := tar.NewReader(plain)
	header, err := r.Next()
	require.NoError(t, err)
	assert.Equal(t, "data", header.Name)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, got))

	info, err := f.Stat()
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())

	require.NoError(t, os.Remove(file))
	stderr, err = backup(t, s.socket, "no/such layer", file)
	require.Error(t, err)
	assert.Contains(t, stderr, `"kind"`)
	assertNone(t, dir)
	assert.NotContains(t, stderr, "cat:")
	stderr, err = backup(t, filepath.Join(dir, "none"), "web", file)
	require.Error(t, err)
	assert.Contains(t, stderr, "curl")
	assertNone(t, dir)
}

// TestBackupScriptCutOff: an answer that ends too early leaves neither a file nor a snapshot.
func TestBackupScriptCutOff(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		testfs.Skip(t, "needs curl: %v", err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	var mu sync.Mutex
	var requests []string
	lost := false // the answer about the snapshot
	note := func(r *http.Request) (lose bool) {
		mu.Lock()
		defer mu.Unlock()
		requests = append(requests, r.Method+" "+r.URL.EscapedPath())
		return lost
	}
	// take returns the requests so far, and says whether the next snapshot's answer is lost.
	take := func(next bool) (taken []string) {
		mu.Lock()
		defer mu.Unlock()
		taken, requests, lost = requests, nil, next
		return taken
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lose := note(r)
		switch r.Method {
		case http.MethodPost:
			if lose {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusCreated)
		case http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		default:
			_, _ = io.WriteString(w, "the beginning")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()

	out := t.TempDir()
	stderr, err := backup(t, socket, "containerd:k8s.io/a b", filepath.Join(out, "web.tar.gz"))
	require.Error(t, err)
	assert.NotContains(t, stderr, "the beginning")
	assertNone(t, out)
	sent := take(true)
	require.Len(t, sent, 3)
	layer := "/v1/layers/containerd:k8s.io%2Fa%20b"
	assert.Equal(t, "POST "+layer+"/snapshots", sent[0])
	assert.True(t, strings.HasPrefix(sent[1], "GET "+layer+"@backup-"), sent[1])
	assert.True(t, strings.HasPrefix(sent[2], "DELETE "+layer+"/snapshots/backup-"), sent[2])

	// The snapshot may be there if its answer is lost.
	_, err = backup(t, socket, "web", filepath.Join(out, "web.tar.gz"))
	require.Error(t, err)
	assertNone(t, out)
	sent = take(false)
	require.Len(t, sent, 2)
	assert.True(t, strings.HasPrefix(sent[1], "DELETE /v1/layers/web/snapshots/backup-"), sent[1])
}

// TestHowTo runs the requests of docs/howto/api.md.
func TestHowTo(t *testing.T) {
	s := serve(t).create("web", "motd", "hello")
	page, err := os.ReadFile("../docs/howto/api.md")
	require.NoError(t, err)
	var script strings.Builder
	script.WriteString("set -eu\n")
	in := false
	for line := range strings.Lines(string(page)) {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "```"):
			in = trimmed == "```sh"
		case in:
			script.WriteString(strings.ReplaceAll(line, "/run/cowshed/api.sock", s.socket))
		}
	}
	var out bytes.Buffer
	stderr, err := runScript(t, exec.Command("sh", "-c", script.String()), "", &out)
	require.NoError(t, err, stderr)
	for _, want := range []string{`"layers"`, `"try-1"`, `"native":true`, `"into":"web"`} {
		assert.Contains(t, out.String(), want)
	}
	layers, err := s.ListLayers(t.Context())
	require.NoError(t, err)
	assert.Len(t, layers, 2, "web and try-1")
}

func TestUpgradeScript(t *testing.T) {
	s := serve(t).create("web", "motd", "hello")
	stdout, stderr, err := upgrade(t, s.socket, "web", "sh", "-c", `echo new >"$0"`, s.path("web", "release"))
	require.NoError(t, err, stderr)
	assert.Equal(t, "A /release\n", stdout)
	assert.Len(t, s.snapshots("web"), 1)

	for name, command := range map[string][]string{
		"a failure":       {"sh", "-c", `echo broken >"$0"; exit 7`},
		"Ctrl-C":          {"sh", "-c", `echo broken >"$0"; kill -INT 0; exit 5`},
		"no such command": {"./no-such-command"},
	} {
		t.Run(name, func(t *testing.T) {
			_, stderr, err := upgrade(t, s.socket, append(append([]string{"web"}, command...), s.path("web", "motd"))...)
			var ended *exec.ExitError
			require.ErrorAs(t, err, &ended, stderr)
			assert.Equal(t, 1, ended.ExitCode())
			assert.Contains(t, stderr, "rolling web back")
			assert.NotContains(t, stderr, "Traceback")
			assert.Equal(t, "hello", s.read("web", "motd"))
			assert.Equal(t, "new\n", s.read("web", "release"))
		})
	}

	_, stderr, err = upgrade(t, s.socket, "none", "true")
	require.Error(t, err)
	assert.Contains(t, stderr, "(not_found)")
	_, stderr, err = upgrade(t, filepath.Join(t.TempDir(), "none"), "web", "true")
	require.Error(t, err)
	assert.Contains(t, stderr, "does cowshed serve have the key api?")
}
