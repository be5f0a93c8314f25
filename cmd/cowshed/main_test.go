package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// asProgramEnv makes the test binary be the program, for tests that need a process of its own.
const asProgramEnv = "COWSHED_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgramEnv) == "1" {
		main()
	}
	os.Exit(m.Run())
}

// result is the outcome of a command line.
type result struct {
	code     int
	out, err string
}

// at runs command lines on one root.
type at struct {
	root  string
	stdin io.Reader
}

func (a at) run(t *testing.T, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	stdin := a.stdin
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	code := run(t.Context(), append([]string{"--root", a.root}, args...), stdin, &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

// ok runs a command line that succeeds, and returns its output.
func (a at) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := a.run(t, args...)
	require.Zero(t, r.code, "%v: %s", args, r.err)
	return r.out
}

// json runs a command line that succeeds and prints JSON.
func (a at) json(t *testing.T, into any, args ...string) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(a.ok(t, append(args, "--json")...)), into))
}
