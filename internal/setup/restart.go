package setup

import (
	"context"
	"fmt"
	"os/exec"
)

// Restart restarts the plan's units, one after the other.
func (p *Plan) Restart(ctx context.Context) error {
	for _, unit := range p.Units {
		if out, err := exec.CommandContext(ctx, "systemctl", "restart", unit).CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl restart %s: %w: %s", unit, err, out)
		}
	}
	return nil
}
