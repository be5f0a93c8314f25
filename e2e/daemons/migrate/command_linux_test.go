package migrate

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// migration is `cowshed migrate` with the flags that name a source and a target.
type migration struct {
	program string
	flags   []string
}

// run runs a step and returns its output.
func (m migration) run(t *testing.T, ctx context.Context, step string, flags ...string) string {
	t.Helper()
	out, err := m.try(ctx, step, flags...)
	require.NoError(t, err)
	t.Logf("cowshed migrate %s:\n%s", step, out)
	return out
}

// try is run of a step that may fail.
func (m migration) try(ctx context.Context, step string, flags ...string) (string, error) {
	cmd := m.command(ctx, step, flags...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("cowshed migrate %s: %w: %s%s", step, err, out, stderr.String())
	}
	return string(out) + stderr.String(), err
}

func (m migration) command(ctx context.Context, step string, flags ...string) *exec.Cmd {
	return exec.CommandContext(ctx, m.program, append(append([]string{"migrate", step}, m.flags...), flags...)...)
}
