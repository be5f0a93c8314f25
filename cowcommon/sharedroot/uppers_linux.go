package sharedroot

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/overlaymark"
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

// isReplaced reports whether the trees of both overlays may have different directories at a path, without names below it in the
// uppers that tell. Then neither upper's directory is a clone of the other, or only one of them hides the lower's directory.
func (p *treePair) isReplaced(name string) (bool, error) {
	var sides [2]upperDir
	for i := range p.dirs {
		var err error
		if sides[i], err = lookAtDir(&p.dirs[i], name); err != nil {
			return false, err
		}
	}
	base, top := &sides[0], &sides[1]
	if base.is && top.is && !sameInode(&base.st, &top.st) {
		return true, nil
	}
	return base.opaque != top.opaque, nil
}

// upperDir is a path in an upper.
type upperDir struct {
	is     bool // it is that of a directory; if so:
	st     unix.Statx_t
	opaque bool // it hides the directory of the lower
}

func lookAtDir(dirs *treeat.DirStack, name string) (d upperDir, err error) {
	at, last := path.Split(name)
	if last == "" {
		last = "."
	}
	dir, err := dirs.Dir(strings.TrimSuffix(at, "/"))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return d, nil
	}
	if err != nil {
		return d, err
	}
	if is, err := lookAt(dir, last, &d.st); !is || err != nil || !isDir(&d.st) {
		return d, err
	}
	d.is = true
	d.opaque, err = overlaymark.Opaque(treeat.File{Dir: dir, Name: last, FD: -1}, overlaymark.Space)
	return d, err
}
