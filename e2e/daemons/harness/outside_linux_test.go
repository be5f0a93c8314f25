package harness

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestOutside: all that was begun is taken back, in the order of a test, whatever way it ended, and each failure is told.
func TestOutside(t *testing.T) {
	t.Setenv(testfs.RequireEnv, "")
	own := errors.New("of its own")
	for name, c := range map[string]struct {
		end  func(testing.TB) error
		want []string
	}{
		"success": {func(testing.TB) error { return nil }, nil},
		"error":   {func(testing.TB) error { return own }, []string{"of its own"}},
		"fatal": {func(t testing.TB) error {
			t.Errorf("first")
			t.Fatalf("number %d", 2)
			return own
		}, []string{"first", "number 2"}},
		"skipped": {func(t testing.TB) error {
			testfs.Skip(t, "needs %s", "more")
			return own
		}, []string{"needs more"}},
	} {
		t.Run(name, func(t *testing.T) {
			var order []string
			err := Outside(func(t testing.TB) error {
				t.Helper()
				t.Cleanup(func() { order = append(order, "first") })
				t.Cleanup(func() {
					order = append(order, "second")
					assert.Equal(t, len(c.want) > 0, t.Failed())
					t.Cleanup(func() { order = append(order, "of the second") })
				})
				return c.end(t)
			})
			assert.Equal(t, []string{"second", "of the second", "first"}, order)
			if len(c.want) == 0 {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			for _, text := range c.want {
				require.ErrorContains(t, err, text)
			}
			if name != "error" {
				require.NotErrorIs(t, err, own)
			}
		})
	}
	err := Outside(func(t testing.TB) error {
		t.Cleanup(func() { t.Fatalf("while it was taken back") })
		return nil
	})
	require.ErrorContains(t, err, "while it was taken back")
}
