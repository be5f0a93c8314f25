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

func TestMessages(t *testing.T) {
	for message, rule := range map[string]string{
		"it is gone":                                  "",
		"it is gone: create it, or name another":      "",
		"API of version 1.42: refused":                "",
		"IDs have letters, digits and \"-_.\"":        "",
		"Docker does not answer":                      "",
		"WAL of 3 pages":                              "",
		"The engine does not answer":                  "clause",
		"it is gone.":                                 "clause",
		"it is gone. Create it":                       "clause",
		"it is gone!\n":                               "clause",
		"see what":                                    "what",
		strings.Repeat("word ", mostWords) + "more":   "26 words",
		strings.Repeat("word ", mostWords) + "%w":     "26 words",
		strings.Repeat("word ", mostWords-1) + "less": "",
	} {
		faults := check([]passage{{text: message, message: true}})
		if rule == "" {
			assert.Empty(t, faults, message)
		} else if assert.Len(t, faults, 1, message) {
			assert.Contains(t, faults[0].rule, rule, message)
		}
	}
}

// TestStrings: of a file that is no test, messages count whatever their length, and other strings from leastWords on.
func TestStrings(t *testing.T) {
	for statement, rule := range map[string]string{
		`fmt.Errorf("see what: %w", err)`:                       "what",
		`errors.New("what")`:                                    "what",
		`fault.New(kind, "see what")`:                           "what",
		`fault.New(kind, "it is gone.")`:                        "clause",
		`fault.Said(kind, "it is gone.")`:                       "clause",
		`fault.As(kind, errors.New("it is gone."))`:             "clause",
		`fault.Wrap("see what", name, err)`:                     "what",
		`fault.WrapWith("see what", name, "from what", err)`:    "what",
		`slog.Warn("It is gone")`:                               "clause",
		`b.log.WarnContext(ctx, "It is gone", "key", "What")`:   "clause",
		`b.log.With("a", 1).LogAttrs(ctx, level, "It is gone")`: "clause",
		`s.Log().Info("it is " + "gone.")`:                      "clause",
		`s.Log().Info("it " + kind + " see what")`:              "what",
		`refused("see what it has")`:                            "what",
		`refused("see all of " + "what it has")`:                "what",
		`refused("see what")`:                                   "",
		`refused("It is gone and stays.")`:                      "",
		`run("sh", "-c", "set -e\ntell what\nit has")`:          "",
		`lines(1 + 2)`:                                          "",
	} {
		text := "package a\n\nfunc f() {\n\t" + statement + "\n}\n"
		in(t, map[string]string{"a.go": text, "a_test.go": text})
		var out bytes.Buffer
		faults, err := run(&out, []string{"a.go", "a_test.go"})
		require.NoError(t, err)
		if rule == "" {
			assert.Zero(t, faults, "%s: %s", statement, &out)
		} else {
			assert.Equal(t, 1, faults, "%s: %s", statement, &out)
			assert.Regexp(t, `^a\.go:4: .*`+rule, out.String(), statement)
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
	assert.Equal(t, 5, faults)
	for _, at := range []string{"a.go:3: ", "a.go:7: ", "cmd/b.go:3: ", "c.md:3: ", "c.md:8: "} {
		assert.Contains(t, out.String(), at)
	}

	_, err = run(&out, []string{"none.go"})
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = run(&out, []string{"x.sh"})
	assert.ErrorContains(t, err, "neither")
}
