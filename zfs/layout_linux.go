package zfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"

	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/mountdir"
)

// Names below the home. docs/reference/on-disk-format.md specifies them.
const (
	graphName   = "graph" // datasets are mounted here, as by moby's driver
	viewsName   = "views" // snapshots are mounted here
	locksName   = "locks"
	intentsName = "intents"
	claimsName  = "claims"
)

// RunDir has the mount points and locks of homes that are opened for reading alone. They are gone when the machine
// stops.
const RunDir = "/run/cowshed/read-only"

// runHome is the directory below RunDir that stands for a home.
func runHome(home string) string {
	sum := sha256.Sum256([]byte(home))
	return filepath.Join(RunDir, hex.EncodeToString(sum[:8]))
}

// layout has the paths of the home: mount points, locks and intents.
type layout struct {
	home    string
	graph   string
	views   string
	locks   string
	intents string
}

// makeLayout makes the home and the directories in it, where they are missing.
func makeLayout(home string, gid int) (layout, error) {
	l := layout{
		home:    home,
		graph:   filepath.Join(home, graphName),
		views:   filepath.Join(home, viewsName),
		locks:   filepath.Join(home, locksName),
		intents: filepath.Join(home, intentsName),
	}
	if err := homedir.MakeAbove(home); err != nil {
		return layout{}, err
	}
	for _, dir := range []string{l.home, l.graph, l.views, l.locks, l.intents} {
		if err := homedir.Make(dir, gid); err != nil {
			return layout{}, err
		}
	}
	return l, nil
}

// keepPrivate keeps the mounts in graph and views out of other mount namespaces.
func (l layout) keepPrivate(gid int) error {
	return errors.Join(mountdir.KeepPrivate(l.graph, gid), mountdir.KeepPrivate(l.views, gid))
}

// release undoes keepPrivate, unless something is still mounted there.
func (l layout) release() error {
	return errors.Join(mountdir.Release(l.graph), mountdir.Release(l.views))
}
