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
	assert.Less(t, time.Since(begun), 3*time.Second)
	assert.LessOrEqual(t, time.Since(begun), testfs.Patience)
	assert.Less(t, len(list), 3)
	require.NoError(t, err)
	go func() {
		assert.NoError(t, err)
		require.NoError(t, err)
		t.Run("sub", func(t *testing.T) { require.NoError(t, err) })
		defer func() { t.Fatal(err) }()
	}()
	group.Go(func() error {
		t.FailNow()
		return nil
	})
	group.Go(f)
	go f(require.New(t))
	serve(func(w http.ResponseWriter, r *http.Request) {
		require.NoError(t, err)
	})
}
`), 0o644))
	faults, err := Faults(root)
	require.NoError(t, err)
	assert.Equal(t, []string{"a_test.go:4", "a_test.go:6", "a_test.go:9", "a_test.go:15", "a_test.go:17", "a_test.go:20", "a_test.go:26"}, faults)
}
