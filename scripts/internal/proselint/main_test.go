package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// in makes files in a directory of the test's own, and makes that the working directory.
func in(t *testing.T, files map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	}
}

func TestRules(t *testing.T) {
	for text, rule := range map[string]string{
		"It lists what changed.":                        "what",
		"It says what.":                                 "what",
		"What is there stays.":                          "what",
		"It says what to do.":                           "",
		"What is a layer?":                              "",
		"# What a start destroys":                       "",
		"It keeps `what` and \"what it has\".":          "",
		"Who has the lock wins.":                        "who",
		"The lock is held by who changes it.":           "who",
		"A process who has it wins.":                    "",
		"Whoever has it wins.":                          "whoever",
		"The keys that there are, are listed.":          "that there is",
		"It makes sure that there is no layer.":         "",
		"It is one that has no name.":                   "one that",
		"All of them but for the first.":                "but for",
		"It is wrong, and says which.":                  "which",
		"Which is why it fails.":                        "bare subject",
		"None of them is left.":                         "",
		"It opens. errdefs.ErrNotFound: it is gone.":    "Returns",
		"Returns ErrNotFound if it is gone: always.":    "",
		strings.Repeat("word ", mostWords) + "more.":    "26 words",
		strings.Repeat("word ", mostWords-1) + "less.":  "",
		strings.Repeat("word ", mostWords) + "; again.": "",
	} {
		faults := check([]passage{{text: text}})
		if rule == "" {
			assert.Empty(t, faults, text)
		} else if assert.Len(t, faults, 1, text) {
			assert.Contains(t, faults[0].rule, rule, text)
		}
	}
}

func TestFiles(t *testing.T) {
	in(t, map[string]string{
		"a.go":          "package a\n\n// A is what\n// it is.\n//\n//\twhat code does\nconst A = `all of what it is`\n\n//go:generate what\n",
		"cmd/b.go":      "package b\n\nconst B = \"all of what it is\"\nconst C = \"what\"\n",
		"cmd/b_test.go": "package b\n\nconst D = \"all of what it is\"\n\nfunc ExampleE() {\n\t// Output:\n\t// all of what it is\n}\n",
		"c.md":          "# What\n\nAll of\nwhat it is.\n```sh\nwhat\n```\n| what | x |\n",
	})
	files := []string{"a.go", "cmd/b.go", "cmd/b_test.go", "c.md"}
	var out bytes.Buffer
	faults, err := run(&out, files)
	require.NoError(t, err)
	assert.Equal(t, 4, faults)
	for _, at := range []string{"a.go:3: ", "cmd/b.go:3: ", "c.md:3: ", "c.md:8: "} {
		assert.Contains(t, out.String(), at)
	}

	_, err = run(&out, []string{"none.go"})
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = run(&out, []string{"x.sh"})
	assert.ErrorContains(t, err, "neither")
}
