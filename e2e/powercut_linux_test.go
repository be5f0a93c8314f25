package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestPowerCut cuts the power right after each operation has returned: acknowledged changes are there.
func TestPowerCut(t *testing.T) {
	inEachSystem(t, cutPower)
}

// cutPower is TestPowerCut of one system.
func cutPower(t *testing.T, s system) {
	if s.driver != "btrfs" {
		return // only a loopback image can be copied as it is at this moment
	}
	for _, op := range operations(s) {
		t.Run(op.name, func(t *testing.T) {
			root := s.root(t)
			prepare(t, s, root)
			d := s.open(t, root, user.IdentityMapping{})
			require.NoError(t, op.run(d))
			copied := testfs.PowerCut(t, filepath.Dir(root))
			// A removed layer may come back, whole; everything else must be as acknowledged.
			durable := !strings.HasPrefix(op.name, "remove")
			assertRecovers(t, s, filepath.Join(copied, filepath.Base(root)), op, durable)
		})
	}
}
