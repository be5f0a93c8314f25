package migrate

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// testTimeout bounds the daemons' work for one test.
const testTimeout = 5 * time.Minute

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
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}
