package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/loopstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// codeBlock is a block of code of a Markdown file.
type codeBlock struct{ language, text string }

func codeBlocks(t *testing.T, file string) (blocks []codeBlock) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	for i, part := range strings.Split("\n"+string(text), "\n```") {
		if i%2 == 1 {
			language, code, _ := strings.Cut(part, "\n")
			blocks = append(blocks, codeBlock{language, code + "\n"})
		}
	}
	return blocks
}

// TestTutorial runs the blocks of docs/tutorial.md in one shell, and compares their output with the blocks that show it.
func TestTutorial(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	program, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, os.Symlink(program, filepath.Join(bin, "cowshed")))

	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	var want []string
	for _, block := range codeBlocks(t, "../../docs/tutorial.md") {
		switch block.language {
		case "sh":
			script.WriteString("echo '== block'\n" + block.text)
			want = append(want, "")
		case "text":
			want[len(want)-1] = block.text
		}
	}
	require.NotEmpty(t, want)

	cmd := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asProgramEnv+"=1", "PATH="+bin+":"+os.Getenv("PATH"), rootEnv+"=", driverEnv+"=")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	t.Cleanup(func() {
		if embedded, err := loopstore.At(filepath.Join(dir, "cowshed-tutorial", "store")); err == nil && t.Failed() {
			_ = embedded.Remove(context.Background()) // of a run that has failed half-way
		}
	})
	require.NoError(t, testfs.Run(t, cmd), "%s%s", &stdout, &stderr)
	got := strings.Split(stdout.String(), "== block\n")[1:]
	require.Len(t, got, len(want))
	for i := range want {
		if want[i] != "" {
			assert.Equal(t, want[i], lastLines(got[i], want[i]), "block %d", i)
		}
	}
	assert.NoDirExists(t, filepath.Join(dir, "cowshed-tutorial"))
}

// lastLines returns as many of the last lines of text as model has.
func lastLines(text, model string) string {
	lines := strings.SplitAfter(text, "\n")
	n := strings.Count(model, "\n") + 1 // with the empty one at the end
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
