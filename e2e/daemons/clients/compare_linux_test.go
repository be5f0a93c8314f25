package clients

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// outcome is how a test of a suite ended.
type outcome string

const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
	missing outcome = "" // it did not end, or was not begun
)

// run has the results of a suite with one snapshotter.
type run struct {
	outcomes map[string]outcome
	output   map[string]string // of each test
}

// snapshotters are those that a suite runs with.
const (
	cowshed = "cowshed"
	overlay = "overlayfs"
)

// outEnv names a directory for the tables, and for the output of the suites.
const outEnv = "COWSHED_CLIENTS_OUT"

// suite is one of a client's.
type suite struct {
	name string
	// long suites are not among those of each day.
	long bool
	// least is how many tests have to pass with both snapshotters: a suite that cannot run here must not look like a
	// suite without findings.
	least int
	run   func(t *testing.T, snapshotter string) run
}

// TestClients runs each suite with each snapshotter and compares.
func TestClients(t *testing.T) {
	for _, s := range []suite{nerdctl(), buildKitClient(), critest(), docker(), containerdClient()} {
		if !s.long || testfs.Long() {
			t.Run(s.name, s.inBoth)
		}
	}
}

func (s suite) inBoth(t *testing.T) {
	runs := make(map[string]run)
	for _, snapshotter := range []string{overlay, cowshed} {
		t.Run(snapshotter, func(t *testing.T) { runs[snapshotter] = s.run(t, snapshotter) })
		require.NotEmpty(t, runs[snapshotter].outcomes, "outcomes with %s", snapshotter)
	}
	known := knownFailures(t, s.name)
	table := tabulate(runs[overlay].outcomes, runs[cowshed].outcomes)
	writeOut(t, s.name+".md", table.markdown(s.name, known))

	for _, name := range table.onlyCowshed {
		if known[name] == "" {
			t.Errorf("%s: %s failed with Cowshed, not with overlayfs:\n%s", s.name, name, runs[cowshed].output[name])
		}
	}
	for name := range known {
		if runs[cowshed].outcomes[name] == passed {
			t.Errorf("%s: %s passed: take it out of %s", s.name, name, knownFile)
		}
	}
	assert.GreaterOrEqual(t, len(table.passed), s.least, "tests that passed with both:\n%s", table.markdown(s.name, known))
}

// table sorts the tests of a suite by their outcomes.
type table struct {
	passed, failed, skipped  []string // with both
	onlyCowshed, onlyOverlay []string // failed with this one
}

func tabulate(withOverlay, withCowshed map[string]outcome) table {
	all := maps.Clone(withOverlay)
	maps.Copy(all, withCowshed)
	var t table
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch o, c := withOverlay[name], withCowshed[name]; {
		case o == passed && c == passed:
			t.passed = append(t.passed, name)
		case o == skipped && c == skipped:
			t.skipped = append(t.skipped, name)
		case c == passed, c == skipped && o != passed:
			t.onlyOverlay = append(t.onlyOverlay, name)
		case o == passed, o == skipped:
			t.onlyCowshed = append(t.onlyCowshed, name)
		default:
			t.failed = append(t.failed, name)
		}
	}
	return t
}

// markdown is a line of a table, and below it the tests by their outcomes.
func (t table) markdown(suite string, known map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| suite | passed by both | failed by both | skipped by both | failed only with Cowshed | failed only with overlayfs |\n")
	fmt.Fprintf(&b, "|---|---|---|---|---|---|\n")
	fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d |\n\n",
		suite, len(t.passed), len(t.failed), len(t.skipped), len(t.onlyCowshed), len(t.onlyOverlay))
	for _, list := range []struct {
		what  string
		names []string
	}{
		{"failed only with Cowshed", t.onlyCowshed},
		{"failed only with overlayfs", t.onlyOverlay},
		{"failed by both", t.failed},
		{"skipped by both", t.skipped},
		{"passed by both", t.passed},
	} {
		for _, name := range list.names {
			fmt.Fprintf(&b, "- %s: %s\n", list.what, strings.TrimSuffix(name+": "+known[name], ": "))
		}
	}
	return b.String()
}

// knownFile lists tests that are known to fail with Cowshed and not with overlayfs, and why.
const knownFile = "testdata/only-cowshed.txt"

// knownFailures reads the reasons of a suite from knownFile, by test.
func knownFailures(t *testing.T, suite string) map[string]string {
	t.Helper()
	f, err := os.Open(knownFile)
	require.NoError(t, err)
	defer f.Close()
	known := make(map[string]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, ": ", 3)
		require.Len(t, fields, 3, "%s: %q is not \"SUITE: TEST: REASON\"", knownFile, line)
		if fields[0] == suite {
			known[fields[1]] = fields[2]
		}
	}
	return known
}

// writeOut keeps a file for the user who runs the tests, if outEnv asks for it.
func writeOut(t *testing.T, name, content string) {
	t.Helper()
	if dir := os.Getenv(outEnv); dir != "" {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
}

// TestTabulate checks where each pair of outcomes is put.
func TestTabulate(t *testing.T) {
	got := tabulate(
		map[string]outcome{"a": passed, "b": failed, "c": skipped, "d": passed, "e": passed, "f": failed, "g": failed, "h": passed},
		map[string]outcome{"a": passed, "b": failed, "c": skipped, "d": failed, "f": passed, "g": skipped, "h": skipped},
	)
	assert.Equal(t, table{
		passed: []string{"a"}, failed: []string{"b"}, skipped: []string{"c"},
		onlyCowshed: []string{"d", "e", "h"}, onlyOverlay: []string{"f", "g"},
	}, got)
}
