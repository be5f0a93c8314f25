package sharedroot

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// unfoldAction is the way in which a name comes into an upper.
type unfoldAction int

const (
	unfoldNothing unfoldAction = iota // neither tree has the name
	unfoldMerge                       // a directory of both trees: its names are looked at one by one
	unfoldMove                        // the upper gets the name, with all that is below it
	unfoldReplace                     // the same, for a directory that hides another in the lower
	unfoldHide                        // the lower has the name alone, so the upper gets a whiteout
)

// unfoldStep brings one name into an upper.
type unfoldStep struct {
	path string // absolute
	unfoldAction
}

// unfoldPlanner finds the steps that make a volume of style snapshot a shared one.
type unfoldPlanner struct {
	ctx       context.Context
	top, base *treeat.DirStack
	device    uint64 // of top
	links     map[uint64]links
	decided   map[string]unfoldAction
	steps     []unfoldStep
	attrs     attrNames
}

// links counts the names of a file with several.
type links struct{ has, moved uint64 }

// planUnfold finds the steps that make an upper of the changes of a tree since that of the lower. Directories come before
// the names in them. hints are complete, and top and base are the roots of frozen trees.
//
// Returns errdefs.ErrFailedPrecondition if an overlay cannot show the tree: a file has changed and unchanged names, a
// changed file has a meaning for overlayfs, or a subvolume is nested in a changed directory.
func planUnfold(ctx context.Context, hints *treediff.Hints, top, base string) ([]unfoldStep, error) {
	trees, err := openTrees(top, base)
	if err != nil {
		return nil, err
	}
	defer trees.close()
	p := &unfoldPlanner{
		ctx: ctx, top: &trees.dirs[0], base: &trees.dirs[1],
		links: make(map[uint64]links), decided: map[string]unfoldAction{"": unfoldMerge},
	}
	var st unix.Stat_t
	if err := unix.Fstat(p.top.Root, &st); err != nil {
		return nil, err
	}
	p.device = st.Dev
	flags := maps.Collect(hints.All())
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		if err := p.plan(name, flags); err != nil {
			return nil, fmt.Errorf("%s: %w", treeat.Quote(name), err)
		}
	}
	for _, l := range p.links {
		if l.moved != l.has {
			return nil, fault.New(errdefs.ErrFailedPrecondition, "a changed file has other names, which an overlay would take for another file")
		}
	}
	return p.steps, nil
}

// plan decides about a path and the directories on the way to it, as far as they are in both trees.
func (p *unfoldPlanner) plan(name string, flags map[string]treediff.Flags) error {
	for end := 0; end < len(name); {
		next := strings.IndexByte(name[end+1:], '/')
		if next < 0 {
			next = len(name) - end - 1
		}
		end += 1 + next
		action, done := p.decided[name[:end]]
		if !done {
			var err error
			if action, err = p.decide(name[:end], flags[name[:end]]); err != nil {
				return err
			}
			p.decided[name[:end]] = action
			if action != unfoldNothing {
				p.steps = append(p.steps, unfoldStep{name[:end], action})
			}
		}
		if action != unfoldMerge {
			return nil
		}
	}
	return p.ctx.Err()
}

func (p *unfoldPlanner) decide(name string, flags treediff.Flags) (unfoldAction, error) {
	if name == "/"+sharedmark.Dir {
		return unfoldNothing, fault.New(errdefs.ErrFailedPrecondition, "a shared root cannot have this name")
	}
	dir, last := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	top, err := p.top.Dir(dir)
	if err != nil {
		return unfoldNothing, err
	}
	base, err := p.base.Dir(dir)
	if err != nil {
		return unfoldNothing, err
	}
	var st [2]unix.Statx_t
	isTop, err := lookAt(top, last, &st[0])
	if err != nil {
		return unfoldNothing, err
	}
	isBase, err := lookAt(base, last, &st[1])
	switch {
	case err != nil:
		return unfoldNothing, err
	case !isTop && !isBase:
		return unfoldNothing, nil
	case !isTop:
		return unfoldHide, nil
	}
	areDirs := isDir(&st[0]) && isBase && isDir(&st[1])
	if areDirs && sameInode(&st[0], &st[1]) && flags&treediff.Deep == 0 {
		return unfoldMerge, nil
	}
	if err := p.check(top, last, isDir(&st[0])); err != nil {
		return unfoldNothing, err
	}
	if areDirs {
		return unfoldReplace, nil
	}
	return unfoldMove, nil
}

// check checks that an overlay can show a name of the tree, and all that is below it, from an upper.
func (p *unfoldPlanner) check(dir int, name string, isDir bool) error {
	if err := p.checkFile(dir, name); err != nil || !isDir {
		return err
	}
	return eachEntry(dir, name, func(e *entry) error { return p.checkFile(e.upper, e.name) })
}

func (p *unfoldPlanner) checkFile(dir int, name string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := treeat.Lstat(dir, name, &st); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case st.Dev != p.device:
		return fault.New(errdefs.ErrFailedPrecondition, "a volume is nested there, which a shared root cannot have")
	case kind == unix.S_IFCHR && st.Rdev == 0:
		return fault.New(errdefs.ErrFailedPrecondition, "a shared root cannot have a character device 0:0")
	case kind != unix.S_IFDIR && st.Nlink > 1:
		l := p.links[st.Ino]
		p.links[st.Ino] = links{has: uint64(st.Nlink), moved: l.moved + 1} //nolint:unconvert // its type depends on the architecture
	}
	list, err := p.attrs.of(treeat.File{Dir: dir, Name: name, FD: -1})
	if err != nil {
		return err
	}
	for attr := range bytes.SplitSeq(list, []byte{0}) {
		if bytes.HasPrefix(attr, []byte(overlaymark.Space)) {
			return fault.New(errdefs.ErrFailedPrecondition, "a shared root cannot have the extended attribute %s", attr)
		}
	}
	return nil
}
