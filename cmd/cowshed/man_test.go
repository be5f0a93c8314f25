package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestManual(t *testing.T) {
	dir := t.TempDir()
	a := at{root: filepath.Join(t.TempDir(), "store")}
	t.Setenv("SOURCE_DATE_EPOCH", "0")
	a.ok(t, "man", dir)

	root := newRootCommand()
	for _, c := range manChildren(root) {
		page := readPage(t, dir, manName(c))
		assert.Contains(t, page, "\n"+roffEscapes.Replace(manName(c)+" - "+c.Short)+"\n")
		assert.Contains(t, page, `"1970\-01\-01"`)
	}
	page := readPage(t, dir, "cowshed")
	for _, c := range manChildren(root) {
		assert.Contains(t, page, `.B "`+roffEscapes.Replace(manName(c))+`(8)"`)
	}
	assert.Contains(t, page, "128+N", "the exit codes")
	assert.Contains(t, readPage(t, dir, "cowshed-serve"), `.B "\-\-default\-limit SIZE"`)
	assert.NotContains(t, page, "cowshed\\-man", "it is hidden")

	again := t.TempDir()
	a.ok(t, "man", again)
	for _, name := range []string{"cowshed", "cowshed-serve"} {
		assert.Equal(t, readPage(t, dir, name), readPage(t, again, name))
	}
}

func readPage(t *testing.T, dir, name string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(dir, name+".8"))
	require.NoError(t, err)
	return string(page)
}

func TestRoff(t *testing.T) {
	var r roff
	r.text("One\n.two\n'three -- \\four\n\n  a  table\n  of two")
	assert.Equal(t, strings.Join([]string{
		"One", `\&.two`, `\&'three \-\- \efour`, ".PP", ".nf", `  a  table`, `  of two`, ".fi", "",
	}, "\n"), r.String())
}
