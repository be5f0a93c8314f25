package migrate

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// testTimeout bounds the daemons' work for one test. It ends tests that hang: it is no measure of speed.
const testTimeout = 20 * time.Minute

func TestMain(m *testing.M) {
	code := m.Run()
	if err := harness.RemoveCowshed(); err != nil {
		fmt.Fprintln(os.Stderr, "migrate:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	return contextOf(t, testTimeout)
}

func contextOf(t *testing.T, timeout time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}
