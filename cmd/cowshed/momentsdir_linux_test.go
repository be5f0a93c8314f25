package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// placed is a Backend of a place.
type placed struct {
	cowcommon.Backend
	place string
}

func (p placed) Place() string { return p.place }

// TestMomentsDir: each home has its own records, and each dataset, so that a command on the one removes none of the other.
func TestMomentsDir(t *testing.T) {
	seen := make(map[string]bool)
	for _, dir := range []string{
		live.Dir("/r", "btrfs", nil), live.Dir("/r", "zfs", nil), live.Dir("/r", "zfs", placed{place: "tank/a"}), live.Dir("/r", "zfs", placed{place: "tank/b"}),
	} {
		assert.False(t, seen[dir], dir)
		seen[dir] = true
		assert.Equal(t, "/r/live", filepath.Dir(dir))
	}

	a := newWeb(t)
	a.ok(t, "snapshot", "web", "before")
	entries, err := os.ReadDir(filepath.Join(a.root, "live"))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "btrfs", entries[0].Name())
	assert.Contains(t, a.ok(t, "__complete", "--root", a.root, "rollback", "web", ""), "before")
}
