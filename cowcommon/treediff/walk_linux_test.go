package treediff

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestWalkRandom holds the walk to go-archive's ChangesDirs over random trees: copies that were changed, and
// trees that have nothing in common.
func TestWalkRandom(t *testing.T) {
	testfs.CheckLeaks(t)
	for _, open := range []int{1, 2, 32} {
		limitOpen(t, open)
		for range 25 {
			seed := rand.Uint64()
			dir := memDir(t)
			base, top, other := filepath.Join(dir, "base"), filepath.Join(dir, "top"), filepath.Join(dir, "other")
			require.NoError(t, os.Mkdir(base, 0o755))
			newForest(t, seed, base).change(120)
			copyTree(t, base, top)
			newForest(t, seed+1, top).change(20)
			require.NoError(t, os.Mkdir(other, 0o755))
			newForest(t, seed+2, other).change(60)

			for _, pair := range [][2]string{{top, base}, {base, top}, {other, base}, {top, ""}, {base, base}} {
				ok := assertLists(t, changesDirs(t, pair[0], pair[1]), mustCompare(t, pair[0], pair[1], nil),
					"seed %d open %d %v", seed, open, pair)
				if !ok {
					return
				}
			}
		}
	}
}
