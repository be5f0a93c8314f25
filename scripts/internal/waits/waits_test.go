package waits

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTree(t *testing.T) {
	faults, err := Faults("../../..")
	require.NoError(t, err)
	assert.Empty(t, faults)
}

func TestFaults(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "a_test.go"), []byte(`package a

func TestA(t *testing.T) {
	require.Eventually(t, f, 10*time.Second, time.Millisecond)
	require.Eventually(t, f, testfs.Patience, time.Millisecond)
	assert.EventuallyWithT(t, func(c *assert.CollectT) {}, time.Minute, time.Second, "message")
	assert.EventuallyWithT(t, func(c *assert.CollectT) {}, h.soon, 2*time.Second)
	assert.Eventually(t, f, held+time.Minute, time.Second)
}
`), 0o644))
	faults, err := Faults(root)
	require.NoError(t, err)
	assert.Equal(t, []string{"a_test.go:4", "a_test.go:6"}, faults)
}
