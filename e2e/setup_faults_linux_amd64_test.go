package e2e

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSetUpFaults has one system call after another of a set-up fail. If it says that it has failed, all is as before.
func TestSetUpFaults(t *testing.T) {
	t.Parallel()
	for _, op := range setUpOperations() {
		t.Run(op.name, func(t *testing.T) {
			failed := 0
			for step := 1; ; step++ {
				dir, h := prepareSetUp(t, op)
				before := filesIn(t, dir)
				cmd := setUpVictim(t, dir, op)
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				r, err := inject(cmd, fault{kind: fails, step: step, errno: unix.ENOSPC})
				require.NoError(t, err)
				if strings.Contains(out.String(), "failed: ") {
					failed++
					assert.Contains(t, out.String(), "no space left on device", "step %d", step)
					assert.Equal(t, before, filesIn(t, dir), "step %d: %s", step, out.String())
				}
				require.NoError(t, undoSetUp(h), "step %d: %s", step, out.String())
				if !r.done {
					assert.NotContains(t, out.String(), "failed: ")
					assert.Greater(t, failed, 5)
					return
				}
			}
		})
	}
}
