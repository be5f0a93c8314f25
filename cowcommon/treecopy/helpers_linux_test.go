package treecopy

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// clone copies a tree with all that it has.
func clone(t testing.TB, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}
