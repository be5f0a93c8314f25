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

// removedPrefix starts the name in subvolumes of a volume that is being removed and has subvolumes nested in it. No
// volume has such a name.
const removedPrefix = ".removed-"

// Names lists what seems to be layers in the directory home, for programs that help people to type them. It opens,
// locks and cleans up nothing, and does not look whether each is a subvolume. The options are those of Init, of which it
// needs none.
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
