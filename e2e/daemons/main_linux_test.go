package daemons

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// testTimeout bounds the daemons' work for one test. It ends tests that hang: it is no measure of speed.
const testTimeout = 10 * time.Minute

// patience is how long a test waits for something that daemons are about to do.
const patience = 2 * testfs.Patience

func TestMain(m *testing.M) {
	code := m.Run()
	if err := harness.RemoveCowshed(); err != nil {
		fmt.Fprintln(os.Stderr, err)
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
