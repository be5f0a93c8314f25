package harness

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestLostLayersIsDocumented checks that operators are told the command that the tests use.
func TestLostLayersIsDocumented(t *testing.T) {
	top, err := sourceTop()
	require.NoError(t, err)
	guide, err := os.ReadFile(filepath.Join(top, "docs", "howto", "docker-20.10-26.md"))
	require.NoError(t, err)
	assert.Contains(t, string(guide), lostLayers)
}
