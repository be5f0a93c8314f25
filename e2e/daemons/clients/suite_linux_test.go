package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// programs returns the directory of a set of programs of scripts/clients.sh. The test is skipped where they have not
// been built.
func programs(t testing.TB, set string) string {
	t.Helper()
	cmd := exec.Command("../../../scripts/clients.sh", "path", set)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		testfs.Skip(t, "needs what scripts/clients.sh builds: %v: %s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// commandTimeout ends commands that hang.
const commandTimeout = 10 * time.Minute

// bounded is the context of a command.
func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	t.Cleanup(cancel)
	return ctx
}

// wrap makes a script of testdata the program of the given name in a directory.
func wrap(t *testing.T, bin, program, script string) {
	t.Helper()
	script, err := filepath.Abs(filepath.Join("testdata", script))
	require.NoError(t, err)
	require.NoError(t, os.Symlink(script, filepath.Join(bin, program)))
}

// goTest runs a test binary and returns the outcomes of its tests, except those that consist of others. name makes
// the name of a test from its name in the binary.
func goTest(ctx context.Context, t *testing.T, suite string, cmd *exec.Cmd, name func(string) string) run {
	t.Helper()
	convert := exec.CommandContext(ctx, "go", "tool", "test2json")
	events, err := convert.StdoutPipe()
	require.NoError(t, err)
	// Not a pipe made by exec: that would be waited for as long as a process that the suite has left holds it.
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr, convert.Stdin = w, w, r
	require.NoError(t, convert.Start())
	err = cmd.Start()
	require.NoError(t, errors.Join(r.Close(), w.Close(), err))

	log := logFile(t, suite)
	defer log.Close()
	result, readErr := readEvents(io.TeeReader(events, log), name)
	// The suite fails if one of its tests does.
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Errorf("run %s: %v", suite, err)
	}
	require.NoError(t, errors.Join(readErr, convert.Wait(), ctx.Err()))
	return result
}

// readEvents reads the output of test2json.
func readEvents(r io.Reader, name func(string) string) (run, error) {
	result := run{outcomes: make(map[string]outcome), output: make(map[string]string)}
	parents := make(map[string]bool)
	output := make(map[string]*strings.Builder)
	for events := json.NewDecoder(r); ; {
		var e struct{ Action, Test, Output string }
		if err := events.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return run{}, fmt.Errorf("read events of tests: %w", err)
		}
		if e.Test == "" {
			continue
		}
		if e.Action == "run" {
			output[e.Test] = new(strings.Builder)
			for parent := e.Test; strings.Contains(parent, "/"); {
				parent = parent[:strings.LastIndex(parent, "/")]
				parents[parent] = true
			}
		}
		if e.Action == "output" && output[e.Test] != nil {
			output[e.Test].WriteString(e.Output)
		}
		switch o := outcome(e.Action); o {
		case passed, failed, skipped:
			result.outcomes[e.Test] = o
		}
	}
	for test, out := range output {
		o := result.outcomes[test] // missing if it did not end
		delete(result.outcomes, test)
		if parents[test] {
			continue
		}
		result.outcomes[name(test)] = o
		result.output[name(test)] = end(out.String(), shownOutput)
	}
	return result, nil
}

// shownOutput is how much of a failed test's output is shown.
const shownOutput = 8 << 10

// end is the end of a text, of whole lines.
func end(text string, size int) string {
	if len(text) <= size {
		return text
	}
	text = text[len(text)-size:]
	return "…" + text[strings.Index(text, "\n")+1:]
}

// outDir is the directory of outEnv for the output of suites, or else a directory of the test.
func outDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(outEnv); dir != "" {
		return dir
	}
	return t.TempDir()
}

// logFile makes a file for all output of a suite.
func logFile(t *testing.T, suite string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(outDir(t), suite+".log"))
	require.NoError(t, err)
	return f
}
