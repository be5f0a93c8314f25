package e2e

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestSetUpFaults has system calls of a set-up fail: long, each of them, else every third from a random one on. If the
// set-up says that it has failed, all is as before.
func TestSetUpFaults(t *testing.T) {
	t.Parallel()
	for _, op := range setUpOperations() {
		t.Run(op.name, func(t *testing.T) {
			stride := 3
			if testfs.Long() {
				stride = 1
			}
			failed := 0
			for step := 1 + rand.IntN(stride); ; step += stride {
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
					assert.Greater(t, failed, 5/stride)
					return
				}
			}
		})
	}
}
