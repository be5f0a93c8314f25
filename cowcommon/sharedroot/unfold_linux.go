package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// unfold makes a volume of style snapshot, whose root is open for reading, a shared one over the lower of that name. Nobody
// else may use the volume meanwhile. The cost is in proportion to the changes, and no data is copied.
//
// The new upper is called folding until it is complete. So after an error or a crash the volume is in stateFolding, and
// fold moves all names back.
func unfold(ctx context.Context, root *os.File, lower string, steps []unfoldStep) error {
	own, st, err := makeOwn(int(root.Fd()), lower)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	u := unfolder{ctx: ctx, own: own, meta: filemeta.Copier{IsContent: isContent}, tree: treeat.DirStack{Root: int(root.Fd())}}
	if err := u.keep("", &st); err != nil {
		return err
	}
	if err := unix.Renameat(own, stagedName, own, foldingName); err != nil {
		return fmt.Errorf("rename directory %s: %w", stagedName, err)
	}
	upper, err := treeat.OpenDir(own, foldingName)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", foldingName, err)
	}
	defer unix.Close(upper)
	u.upper.Root = upper
	defer u.tree.Close()
	defer u.upper.Close()
	for _, s := range steps {
		if err := u.step(s); err != nil {
			return fmt.Errorf("%s: %w", treeat.Quote(s.path), err)
		}
	}
	if err := u.eachMerged(filemeta.SetTimes); err != nil {
		return err
	}
	if err := unix.Renameat(own, foldingName, own, upperName); err != nil {
		return fmt.Errorf("rename directory %s: %w", foldingName, err)
	}
	// A fold that began before this would need all notes. The next fold writes them anew.
	err = u.eachMerged(func(dir treeat.File, _ *unix.Stat_t) error { return removeNote(dir) })
	if err != nil {
		return fmt.Errorf("%w: %w", errTimesLeft, err)
	}
	return nil
}

// errTimesLeft says that the volume is shared, and that directories of its upper still have the times that unfold has noted.
// They have no effect.
var errTimesLeft = errors.New("noted times are left over")

type unfolder struct {
	ctx         context.Context
	own         int // Cowshed's directory
	meta        filemeta.Copier
	tree, upper treeat.DirStack
	merged      []mergedDir
}

// mergedDir is a directory in an upper that changes while names are moved into it.
type mergedDir struct {
	path string
	st   unix.Stat_t // with the times that it is to have
}

// keep notes the times of a directory of the upper, which has its staged name, before names are moved into it.
func (u *unfolder) keep(path string, st *unix.Stat_t) error {
	u.merged = append(u.merged, mergedDir{path, *st})
	if err := writeNote(u.staged(), st); err != nil {
		return err
	}
	return u.ctx.Err()
}

func (u *unfolder) staged() treeat.File { return treeat.File{Dir: u.own, Name: stagedName, FD: -1} }

func (u *unfolder) step(s unfoldStep) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	dir, name := path.Split(s.path)
	dir = strings.TrimSuffix(dir, "/")
	tree, err := u.tree.Dir(dir)
	if err != nil {
		return err
	}
	upper, err := u.upper.Dir(dir)
	if err != nil {
		return err
	}
	source, target := treeat.File{Dir: tree, Name: name, FD: -1}, treeat.File{Dir: upper, Name: name, FD: -1}
	switch s.unfoldAction {
	case unfoldMerge:
		return u.merge(s.path, source, target)
	case unfoldMove, unfoldReplace:
		if err := unix.Renameat2(tree, name, upper, name, unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("rename: %w", err)
		}
		if s.unfoldAction == unfoldReplace {
			if err := target.SetXattr(overlaymark.Space+"opaque", []byte("y")); err != nil {
				return fmt.Errorf("hide the lower directory: %w", err)
			}
		}
	case unfoldHide:
		if err := unix.Mknodat(upper, name, unix.S_IFCHR, 0); err != nil {
			return fmt.Errorf("make whiteout: %w", err)
		}
	case unfoldNothing:
	}
	return nil
}

// merge makes the copy of a directory without the names in it. It gets its place when it has all attributes, which a fold
// gives back.
func (u *unfolder) merge(name string, source, target treeat.File) error {
	var st unix.Stat_t
	if err := treeat.Lstat(source.Dir, source.Name, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := unix.Mkdirat(u.own, stagedName, dirMode); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := u.meta.Set(u.staged(), source, &st); err != nil {
		return err
	}
	if err := u.keep(name, &st); err != nil {
		return err
	}
	if err := unix.Renameat(u.own, stagedName, target.Dir, target.Name); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	return nil
}

// eachMerged calls do for the directories of the upper, with the times that each is to have.
func (u *unfolder) eachMerged(do func(dir treeat.File, st *unix.Stat_t) error) error {
	for _, m := range u.merged {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		fd, err := u.upper.Dir(m.path)
		if err == nil {
			err = do(treeat.File{Dir: fd, Name: ".", FD: -1}, &m.st)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", treeat.Quote(m.path), err)
		}
	}
	return nil
}
