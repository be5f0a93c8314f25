package btrfs

import (
	"context"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon"
)

// Names below the home. docs/reference/on-disk-format.md specifies them.
const (
	subvolumesName = "subvolumes"
	stagingName    = "staging"
	removingName   = "removing"
	viewsName      = "views"
	quotasName     = "quotas" // moby's
)

// removedPrefix begins a name in the directory subvolumes: that of a volume which is being removed and has subvolumes
// nested in it, or which was received and is being sealed. No other volume has such a name.
const removedPrefix = ".removed-"

// Names lists the names in the directory home that seem to be layers, for programs that help people to type them. It
// opens, locks and cleans up nothing, and does not check that each is a subvolume. It takes the options of Init, and
// ignores them.
func Names(_ context.Context, home string, _ []string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(home, subvolumesName))
	var names []string
	for _, entry := range entries {
		if entry.IsDir() && cowcommon.CheckID(entry.Name()) == nil {
			names = append(names, entry.Name())
		}
	}
	return names, err
}
