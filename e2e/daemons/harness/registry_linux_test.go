package harness

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestListening finds the address of the last process in the log of a registry.
func TestListening(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	const line = `time="2026-11-30T17:00:00Z" level=info msg="listening on 127.0.0.1:4001" go.version=go1.19.8` + "\n"
	require.NoError(t, os.WriteFile(log, []byte(runTitle+"first\n"+line+runTitle+"second\n"), 0o600))
	output, err := lastRun(log)
	require.NoError(t, err)
	_, err = listening(output)
	require.Error(t, err)
	address, err := listening(output + `level=info msg="listening on 127.0.0.1:4002"`)
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1:4002", address)
}
