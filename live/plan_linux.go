package live

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/treeat"
)

// plan has the changes of a merge.
type plan struct {
	changes   []archive.Change // from the fork's tree
	root      bool             // the root directory gets the fork's attributes
	conflicts []Conflict       // that were resolved
}

// isEmpty reports whether there is nothing to apply.
func (p *plan) isEmpty() bool { return len(p.changes) == 0 && !p.root }

// apply makes the changes in the tree at root, which is like the tree ours.
func (p *plan) apply(ctx context.Context, root *os.File, theirs, ours string) error {
	if err := copyChanges(ctx, root, theirs, p.changes); err != nil {
		return err
	}
	if p.root {
		return nil
	}
	return copyChanges(ctx, root, ours, nil) // the attributes of the root alone
}

// planner finds the changes to apply, and the conflicts. A directory with a change below it is listed as changed. So if one
// side has removed a directory, and the other has changed something below it, both list the directory.
type planner struct {
	trees   *trees
	ours    map[string]archive.ChangeType // by path
	named   map[inode]bool                // the files at these paths, once somebody has asked
	resolve func(Conflict) Resolution
	open    []Conflict // that are not resolved
	decided []string   // paths that are decided with all below them
	plan    plan
}

func (m *merge) plan(ctx context.Context, theirs, ours *cowcommon.Comparison) (_ *plan, err error) {
	t, err := openTrees(theirs.Dir(), ours.Dir(), theirs.BaseDir())
	if err != nil {
		return nil, err
	}
	defer t.close()
	p := &planner{trees: t, ours: make(map[string]archive.ChangeType, len(ours.Changes)), resolve: m.opts.Resolve}
	for _, c := range ours.Changes {
		p.ours[c.Path] = c.Kind
	}
	changes, err := t.withAllNames(ctx, theirs.Changes)
	if err != nil {
		return nil, err
	}
	if err := p.root(); err != nil {
		return nil, err
	}
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if c.Path == "/" || slices.ContainsFunc(p.decided, func(top string) bool { return isWithin(top, c.Path) }) {
			continue
		}
		if err := p.one(ctx, c); err != nil {
			return nil, err
		}
	}
	if len(p.open) > 0 {
		return nil, &ConflictError{p.open}
	}
	sortByPath(p.plan.changes)
	return &p.plan, nil
}

func sortByPath(changes []archive.Change) {
	slices.SortFunc(changes, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) })
}

// root decides about the attributes of the root directory.
func (p *planner) root() error {
	in, err := p.trees.look("/")
	if err != nil {
		return err
	}
	p.plan.root, err = p.directory(archive.Change{Path: "/", Kind: archive.ChangeModify}, archive.ChangeModify, in)
	return err
}

// one decides about one change of the fork.
func (p *planner) one(ctx context.Context, c archive.Change) error {
	in, err := p.trees.look(c.Path)
	if err != nil {
		return err
	}
	ours, both := p.ours[c.Path]
	switch {
	case !both && in.ours.isFile():
		names, err := p.hasOtherNames(in.ours)
		if err != nil {
			return err
		}
		if !names {
			p.take(c.Path, c.Kind)
			return nil
		}
		return p.conflict(ctx, in, Conflict{Path: c.Path, Fork: c.Kind, Layer: archive.ChangeModify, Reason: "the layer has given the file other names"})
	case !both:
		p.take(c.Path, c.Kind)
		return nil
	case in.theirs.isDir() && in.ours.isDir():
		takes, err := p.directory(c, ours, in)
		if takes {
			p.take(c.Path, c.Kind)
		}
		return err
	}
	same, err := p.trees.same(c.Path, in.theirs, in.ours)
	if err != nil || same {
		return err
	}
	return p.conflict(ctx, in, Conflict{Path: c.Path, Fork: c.Kind, Layer: ours})
}

// hasOtherNames reports whether the layer lists another name of a file, whose path it does not list. A count of links does not tell:
// in a layer with a shared root, a file that is written to leaves its other names behind.
func (p *planner) hasOtherNames(file look) (bool, error) {
	if file.st.Nlink < 2 {
		return false, nil
	}
	if p.named == nil {
		p.named = make(map[inode]bool)
		for path, kind := range p.ours {
			if kind == archive.ChangeDelete {
				continue
			}
			l, err := lookIn(file.tree, path)
			if err != nil {
				return false, fmt.Errorf("%s: %w", treeat.Quote(path), err)
			}
			if l.isFile() {
				p.named[l.inode()] = true
			}
		}
	}
	return p.named[file.inode()], nil
}

func (p *planner) take(path string, kind archive.ChangeType) {
	p.plan.changes = append(p.plan.changes, archive.Change{Path: path, Kind: kind})
}

// directory reports whether a directory of both gets the fork's attributes. Both may list it only because of a change below
// it.
func (p *planner) directory(c archive.Change, ours archive.ChangeType, in looks) (takes bool, err error) {
	if same, err := p.trees.sameAttributes(in.theirs, in.ours); err != nil || same {
		return false, err
	}
	if same, err := p.trees.sameAttributes(in.theirs, in.base); err != nil || same {
		return false, err
	}
	if same, err := p.trees.sameAttributes(in.ours, in.base); err != nil || same {
		return err == nil, err
	}
	conflict := Conflict{Path: c.Path, Fork: c.Kind, Layer: ours, Reason: "owner, mode or attributes of the directory"}
	switch p.ask(conflict) {
	case Theirs:
		takes = true
		fallthrough
	case Ours:
		p.plan.conflicts = append(p.plan.conflicts, conflict)
	default:
		p.open = append(p.open, conflict)
	}
	return takes, nil
}

func (p *planner) ask(c Conflict) Resolution {
	if p.resolve == nil {
		return Refuse
	}
	return p.resolve(c)
}

// conflict resolves a conflict about a path and all below it, or notes it.
func (p *planner) conflict(ctx context.Context, in looks, c Conflict) error {
	p.decided = append(p.decided, c.Path)
	how := p.ask(c)
	if how == Refuse {
		p.open = append(p.open, c)
		return nil
	}
	p.plan.conflicts = append(p.plan.conflicts, c)
	switch {
	case how == Ours:
		return nil
	case !in.theirs.exists():
		p.take(c.Path, archive.ChangeDelete)
		return nil
	}
	p.take(c.Path, archive.ChangeAdd)
	if !in.theirs.isDir() {
		return nil
	}
	return p.trees.walk(ctx, c.Path, func(path string, _ look) { p.take(path, archive.ChangeAdd) })
}

// isWithin reports whether path is top or below it.
func isWithin(top, path string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(top, "/"))
	return ok && (rest == "" || rest[0] == '/')
}
