package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// partFrom reads from the environment which part of a test runs, such as 1/6. first is its number, from 0. Without the
// variable, the test has one part.
func partFrom(t *testing.T, name string) (first, parts int) {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0, 1
	}
	_, err := fmt.Sscanf(text, "%d/%d", &first, &parts)
	require.NoError(t, err, name)
	require.Positive(t, first, name)
	require.LessOrEqual(t, first, parts, name)
	return first - 1, parts
}
