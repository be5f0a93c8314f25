package daemons

import (
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestContainerdZFS is TestContainerd on ZFS. The long variant has other tests too, which run on btrfs in the short
// one.
func TestContainerdZFS(t *testing.T) {
	in := func(name string, test containerdTest) {
		t.Run(name, func(t *testing.T) { inEachSnapshotterOn(t, onZFS(), []snapshotter{cowshed()}, test) })
	}
	in("life", liveInContainerd)
	if !testfs.Long() {
		return
	}
	in("limit", runToLimit)
	in("at once", runAtOnce)
	in("restart", restartContainerd)
	in("many files", commitFewOfMany)
	t.Run("annotations", func(t *testing.T) { inEachSnapshotterOn(t, onZFS(), []snapshotter{withAnnotations()}, limitPods) })
}
