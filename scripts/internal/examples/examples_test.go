package examples

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTree: every public package of this tree has an example, and each example is run.
func TestTree(t *testing.T) {
	faults, err := Faults("../../..")
	require.NoError(t, err)
	assert.Empty(t, faults)
}

func TestFaults(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"a/a.go":           "package a\nfunc F() {}\n",
		"a/a_test.go":      "package a\nfunc TestA() {}\n",
		"b/b.go":           "package b\nfunc F() {}\n",
		"b/x_test.go":      "package b_test\nfunc Example() {\n\tprint()\n\t// Output:\n\t// x\n}\nfunc ExampleNone() {\n\t// Output:\n}\n",
		"c/c.go":           "package c\nfunc F() {}\n",
		"c/x_test.go":      "package c_test\nfunc ExampleRun() {}\nfunc ExampleLeft() {}\n// This is compiled only.\nfunc ExampleNot() {}\nfunc TestX() { testfs.Example(t, ExampleRun, \"x\") }\n",
		"cmd/x/x.go":       "package x\nfunc F() {}\n",
		"d/main.go":        "package main\nfunc F() {}\n",
		"d/internal/d.go":  "package d\nfunc F() {}\n",
		"f/f.go":           "package f\nfunc f() {}\n",
		"e/only_test.go":   "package e\n",
		"a/testdata/no.go": "no package\n",
	} {
		file := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	faults, err := Faults(root)
	require.NoError(t, err)
	assert.Equal(t, []string{
		"a: no Example",
		"c: nothing runs ExampleLeft: it has no Output, and testfs.Example does not call it",
	}, faults)
}
