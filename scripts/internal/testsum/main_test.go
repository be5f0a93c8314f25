package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

func TestRealRuns(t *testing.T) {
	for _, tc := range []struct {
		name  string
		args  []string // of testsum
		files map[string]string
		code  int
		last  string   // the closing line
		says  []string // further texts in the output
	}{
		{
			name:  "all pass, subtests count and their parents do not",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { t.Run("x", func(*testing.T) {}); t.Run("y", func(*testing.T) {}) }; func TestB(t *testing.T) {}`},
			last:  "3 passed, 0 failed",
		},
		{
			name:  "failure",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { t.Log("why it fails"); t.Fail() }; func TestB(t *testing.T) { t.Log("quiet") }`},
			code:  1,
			last:  "1 passed, 1 failed",
			says:  []string{"why it fails", "failed: example TestA"},
		},
		{
			name:  "failure of a subtest is named once",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { t.Fail() }); t.Run("y", func(*testing.T) {}) }`},
			code:  1,
			last:  "1 passed, 1 failed",
			says:  []string{"failed: example TestA/x\n1 passed"},
		},
		{
			name:  "failure of a test whose subtests pass",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) {}); t.Fail() }`},
			code:  1,
			last:  "1 passed, 1 failed",
			says:  []string{"failed: example TestA\n"},
		},
		{
			name:  "skip",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { t.Skip("no luck") }; func TestB(t *testing.T) {}`},
			code:  1,
			last:  "1 passed, 1 failed",
			says:  []string{"no luck", "skipped, which counts as a failure: example TestA"},
		},
		{
			name:  "allowed skip",
			args:  []string{"-allow", "allowed"},
			files: map[string]string{"allowed": "# reason\nexample TestA # more\n", "a_test.go": `func TestA(t *testing.T) { t.Skip() }; func TestB(t *testing.T) {}`},
			last:  "1 passed, 0 failed",
		},
		{
			name:  "elsewhere",
			args:  []string{"-elsewhere"},
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { t.Skip("` + testfs.ElsewhereReason + `") }; func TestB(t *testing.T) {}`},
			last:  "1 passed, 0 failed",
		},
		{
			name:  "nothing but skips",
			args:  []string{"-elsewhere"},
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { t.Skip("` + testfs.ElsewhereReason + `") }`},
			code:  1,
			last:  "0 passed, 0 failed",
		},
		{
			name:  "panic",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { panic("ouch") }; func TestB(t *testing.T) {}`},
			code:  1,
			last:  "0 passed, 1 failed",
			says:  []string{"ouch"},
		},
		{
			name:  "exit in the middle",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { println("last words"); os.Exit(3) }`},
			code:  1,
			last:  "0 passed, 1 failed",
		},
		{
			name:  "does not compile",
			files: map[string]string{"a_test.go": `func TestA(t *testing.T) { undefined() }`},
			code:  1,
			last:  "0 passed, 1 failed",
			says:  []string{"undefined: undefined"},
		},
		{
			name:  "no tests",
			files: map[string]string{"a.go": "package example\n"},
			code:  1,
			last:  "0 passed, 0 failed",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			require.NoError(t, os.WriteFile("go.mod", []byte("module example\n\ngo 1.25\n"), 0o600))
			for name, text := range tc.files {
				if strings.HasSuffix(name, "_test.go") {
					text = "package example\n\nimport (\"os\"; \"testing\")\n\nvar _ = os.Exit\n\n" + text
				}
				require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
			}
			var out strings.Builder
			code, err := run(append(tc.args, "--", "go", "test", "-json", "./..."), nil, &out)
			require.NoError(t, err)
			assert.Equal(t, tc.code, code, out.String())
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			assert.Equal(t, tc.last, lines[len(lines)-1], out.String())
			for _, says := range tc.says {
				assert.Contains(t, out.String(), says)
			}
			assert.NotContains(t, out.String(), "quiet")
		})
	}
}

func TestStandardInput(t *testing.T) {
	events := `{"Action":"run","Package":"p","Test":"TestA"}
not an event
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`
	var out strings.Builder
	code, err := run(nil, strings.NewReader(events), &out)
	require.NoError(t, err)
	assert.Zero(t, code)
	assert.Equal(t, "not an event\n1 passed, 0 failed\n", out.String())
}

func TestTotal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "counts")
	require.NoError(t, addCounts(file, counts{passed: 3}))
	require.NoError(t, addCounts(file, counts{passed: 4, elsewhere: 1}))
	var out strings.Builder
	code, err := run([]string{"-total", "-counts", file}, nil, &out)
	require.NoError(t, err)
	assert.Zero(t, code)
	assert.Equal(t, "7 passed, 0 failed\n", out.String())

	require.NoError(t, addCounts(file, counts{failed: 1, faults: []string{"failed: p TestA"}}))
	out.Reset()
	code, err = run([]string{"-total", "-counts", file}, nil, &out)
	require.NoError(t, err)
	assert.Equal(t, 1, code)
	assert.Equal(t, "failed: p TestA\n7 passed, 1 failed\n", out.String())

	require.NoError(t, os.WriteFile(file, []byte("rubbish\n"), 0o600))
	_, err = run([]string{"-total", "-counts", file}, nil, &out)
	require.Error(t, err)
}

func TestBadArguments(t *testing.T) {
	allowed := filepath.Join(t.TempDir(), "allowed")
	require.NoError(t, os.WriteFile(allowed, []byte("one two three\n"), 0o600))
	for _, args := range [][]string{
		{"-frob"}, {"-allow", allowed, "--", "true"}, {"-allow", allowed + ".none", "--", "true"}, {"--", "/no/such/program"},
	} {
		_, err := run(args, nil, &strings.Builder{})
		assert.Error(t, err, args)
	}
}
