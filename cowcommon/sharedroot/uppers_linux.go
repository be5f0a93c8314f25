package sharedroot

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// betweenUppers makes hints for the trees of two overlays over one lower from hints for the volumes in which their uppers
// are. base and top are the roots of these volumes.
func betweenUppers(volumes *treediff.Hints, base, top string) (*treediff.Hints, error) {
	uppers, err := openTrees(upperOf(base), upperOf(top))
	if err != nil {
		return nil, err
	}
	defer uppers.close()
	// Hints for volumes rely on the numbers of inodes. Those of overlays do not tell a directory of the lower from its copy.
	hints := &treediff.Hints{ByName: true}
	for name, flags := range volumes.All() {
		below, is := strings.CutPrefix(name, "/"+sharedmark.Dir+"/"+upperName)
		if !is || below != "" && below[0] != '/' {
			continue
		}
		replaced, err := uppers.isReplaced(below)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", treeat.Quote(below), err)
		}
		if replaced {
			flags |= treediff.Deep
		}
		hints.Add(below, flags|treediff.Written)
	}
	replaced, err := uppers.isReplaced("")
	if replaced { // the root style was changed in between
		err = &treediff.NoHintsError{Reason: "root style", Err: errors.New("one upper is no clone of the other")}
	}
	if err != nil {
		return nil, err
	}
	return hints, nil
}

// isReplaced reports whether a path is that of two directories of which neither is a clone of the other.
func (p *treePair) isReplaced(name string) (bool, error) {
	at, last := path.Split(name)
	if last == "" {
		last = "."
	}
	var st [2]unix.Statx_t
	for i := range p.dirs {
		dir, err := p.dirs[i].Dir(strings.TrimSuffix(at, "/"))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if is, err := lookAt(dir, last, &st[i]); !is || err != nil || !isDir(&st[i]) {
			return false, err
		}
	}
	return !sameInode(&st[0], &st[1]), nil
}
