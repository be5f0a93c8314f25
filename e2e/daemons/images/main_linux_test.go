package images

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// commandTimeout ends commands that hang. Tools work beside each other.
const commandTimeout = 10 * time.Minute

func TestMain(m *testing.M) {
	code := m.Run()
	if err := harness.RemoveCowshed(); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// tempDir is a directory for the time of a test. Tools make names of its path, and these have no capital letters.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "images-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}
