package daemons

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDockerZFS is TestDocker on ZFS. The long variant has other tests too, which run on btrfs in the short one.
func TestDockerZFS(t *testing.T) {
	plugin := []engine{{"debian-cowshed", "32m", onPlugin()}}
	t.Run("life", func(t *testing.T) { inEachOn(t, onZFS(), onCowshed(), liveInEngine) })
	if !testfs.Long() {
		return
	}
	t.Run("limit", func(t *testing.T) { inEachOn(t, onZFS(), plugin, writeToLimit) })
	t.Run("build", func(t *testing.T) { inEachOn(t, onZFS(), onCowshed(), buildAtOnce) })
	t.Run("restart", func(t *testing.T) { inEachOn(t, onZFS(), onCowshed(), restartDaemons) })
	t.Run("many files", func(t *testing.T) { inEachOn(t, onZFS(), onCowshed(), changeFewOfMany) })
	t.Run("kill under build", func(t *testing.T) { inEachOn(t, onZFS(), onCowshed(), killUnderBuild) })
	t.Run("observed", observeOnZFS)
	t.Run("storage option", func(t *testing.T) { inEachOn(t, onZFS(), dockerWith(withDockerAPI()), limitByOption) })
}

// observeOnZFS is TestDockerObserved on ZFS. Users of the engine's own driver find all that it tells them in Cowshed's
// description too.
func observeOnZFS(t *testing.T) {
	ours, theirs := observeBoth(t, onZFS(), "zfs")
	for _, both := range [][2]map[string]string{{ours.Status, theirs.Status}, {ours.Image, theirs.Image}, {ours.Container, theirs.Container}} {
		assert.NotEmpty(t, both[1])
		assert.Subset(t, slices.Collect(maps.Keys(both[0])), slices.Collect(maps.Keys(both[1])))
	}
	assert.Equal(t, "true", ours.Image["Sealed"])
	assert.Equal(t, "false", ours.Container["Sealed"])
}
