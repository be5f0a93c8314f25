//go:build cgo

package main

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestMeasureSnapshotters takes the snapshotters through their workloads, on a small base. That Cowshed compared
// natively, and that comparisons found the changes, is checked while it runs.
func TestMeasureSnapshotters(t *testing.T) {
	testfs.Root(t)
	c := config{
		filesystem: "btrfs", root: testfs.Btrfs(t), work: t.TempDir(), rounds: 1, repeat: 1, log: slog.New(slog.DiscardHandler),
	}
	require.NoError(t, c.onRoot(btrfsctl.EnableSimpleQuota))
	for _, w := range []workload{snapshotters(50), besideSnapshots(fewSnapshots + 2)} {
		result, err := c.measure(w)
		require.NoError(t, err)
		for _, name := range []string{"cowshed", "containerd"} {
			beside := []operation{""}
			if w.others > 0 {
				beside = []operation{besideFew, besideMany}
			} else {
				assert.NotEmpty(t, result.samples[name][opCompare], name)
			}
			for _, beside := range beside {
				for _, op := range life {
					assert.NotEmpty(t, result.samples[name][op+beside], "%s: %s", name, op+beside)
				}
			}
		}
	}
	_, err := c.measure(workload{
		write: snapshotters(50).write, steps: []step{{"compare", (*run).compare}},
	})
	require.ErrorIs(t, err, errNoSnapshots, "graph drivers have none")
}
