package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// fold makes a shared volume, whose root is open for reading, one of style snapshot with the tree that its overlay
// shows. Nobody else may use the volume meanwhile. The cost is in proportion to the changes, and no data is copied.
//
// Others may mount the overlay until the fold begins, and by its path no longer. unused is called then, and may be nil. If
// it fails, the volume is shared as before.
//
// Each step can be taken again. So after an error, a crash or a power cut the volume is shared still, or it is in
// stateFolding and fold completes it. Nothing is synced.
//
// Renames take space. Returns an error for which fault.IsFull holds if there is none left, or if the volume has reached
// its limit: the caller lifts a limit for the time of the fold.
//
// Returns errdefs.ErrFailedPrecondition if the tree has a file of the reserved name. The volume is shared still then.
func fold(ctx context.Context, root *os.File, unused func() error) error {
	s, _, err := inspect(root)
	if err != nil || s == stateNone {
		return err
	}
	f := folder{ctx: ctx, unused: unused, root: int(root.Fd()), own: -1, meta: filemeta.Copier{IsContent: isContent}}
	if err := f.run(s); err != nil {
		return fmt.Errorf("fold a shared root: %w", err)
	}
	return nil
}

type folder struct {
	ctx    context.Context
	unused func() error
	root   int // its descriptor
	own    int // the directory of sharedmark, while there is one
	meta   filemeta.Copier

	attrs attrNames
	*walk
}

func (f *folder) run(s state) error {
	own, _, err := sharedmark.Open(f.root)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", sharedmark.Dir, err)
	}
	if own >= 0 {
		f.own = own
		defer unix.Close(own)
		if s == stateShared {
			if err := f.begin(); err != nil {
				return err
			}
		}
		isThere, err := exists(own, foldingName)
		if err != nil {
			return err
		}
		if isThere {
			if err := f.merge(); err != nil {
				return err
			}
		}
	}
	return f.end()
}

// begin notes the times of the directories that are merged, which renames out of them will change. Then it begins the
// fold in one step. The writes of an overlay that is being mounted at this moment, and is not listed yet, are moved with the
// others, or fail.
func (f *folder) begin() error {
	upper, err := treeat.OpenDir(f.own, upperName)
	if err != nil {
		return fmt.Errorf("open the upper directory: %w", err)
	}
	defer unix.Close(upper)
	if err := f.checkReserved(upper); err != nil {
		return err
	}
	w := newWalk(f.ctx, upper, f.root)
	defer w.close()
	w.merged = func(dir int) error {
		here := treeat.File{Dir: dir, Name: ".", FD: -1}
		var st unix.Stat_t
		if err := treeat.Lstat(dir, here.Name, &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		return writeNote(here, &st)
	}
	if err := w.run(); err != nil {
		return err
	}
	err = f.do("rename the upper directory", func() error {
		return unix.Renameat(f.own, upperName, f.own, foldingName)
	})
	if err != nil {
		return err
	}
	if f.unused != nil {
		if err := f.unused(); err != nil {
			return errors.Join(err, unix.Renameat(f.own, foldingName, f.own, upperName))
		}
	}
	return nil
}

// checkReserved refuses a file of a user that would replace Cowshed's own directory.
func (f *folder) checkReserved(upper int) error {
	e := entry{upper: upper, name: sharedmark.Dir}
	err := e.know()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	gone, err := e.isWhiteout()
	if err != nil {
		return err
	}
	if !gone {
		return fault.New(errdefs.ErrFailedPrecondition,
			"the tree has a file /%s, which is a name of Cowshed's: rename it", sharedmark.Dir)
	}
	if err := unix.Unlinkat(upper, sharedmark.Dir, 0); err != nil {
		return fmt.Errorf("remove whiteout: %w", err)
	}
	return nil
}

// merge moves all that the folded directory has to its place. The root gets its attributes, and the record of its times.
func (f *folder) merge() error {
	folding, err := treeat.OpenDir(f.own, foldingName)
	if err != nil {
		return fmt.Errorf("open the folded directory: %w", err)
	}
	defer unix.Close(folding)
	f.walk = newWalk(f.ctx, folding, f.root)
	defer f.walk.close()
	f.walk.other, f.walk.leave = f.place, f.leave
	return f.walk.run()
}

// setAttributes gives a target the attributes of a folded directory, and then, by times, those of its note.
func (f *folder) setAttributes(what string, target, source treeat.File, times func(treeat.File, *unix.Stat_t) error) error {
	var st unix.Stat_t
	if err := treeat.Lstat(source.Dir, source.Name, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := withNote(source, &st); err != nil {
		return err
	}
	err := f.do(what, func() error { return f.meta.Set(target, source, &st) }, target)
	if err == nil {
		err = f.do(what, func() error { return times(target, &st) })
	}
	return err
}

// leaveRoot gives the root its attributes but its times, and removes the folded directory, which is empty.
func (f *folder) leaveRoot(l *level) (again bool, err error) {
	source, target := treeat.File{Dir: f.own, Name: foldingName, FD: -1}, treeat.File{FD: f.root}
	if err := f.setAttributes("root", target, source, writeNote); err != nil {
		return false, err
	}
	return f.removeEmpty(source, l.seen)
}

// end removes Cowshed's directory, and gives the root its times.
func (f *folder) end() error {
	root := treeat.File{FD: f.root}
	var st unix.Stat_t
	if err := unix.Fstat(f.root, &st); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if err := withNote(root, &st); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	var err error
	if f.own >= 0 {
		err = f.do("remove directory", func() error { return treeat.RemoveTree(f.ctx, f.root, sharedmark.Dir) })
	}
	if err == nil {
		err = f.do("root", func() error { return filemeta.SetTimes(root, &st) })
	}
	if err == nil {
		err = f.do("root", func() error { return removeNote(root) })
	}
	return err
}

// place moves a name of the folded directory to its place, unless it is that of a directory that is merged.
func (f *folder) place(e *entry) error {
	if len(f.path) == 0 && e.name == sharedmark.Dir {
		return fault.New(errdefs.ErrDataLoss, "it has appeared since the fold began")
	}
	if e.kind == unix.DT_DIR {
		return f.placeDir(e)
	}
	gone, err := e.isWhiteout()
	if err == nil && !gone {
		gone, err = f.strip(e.source())
	}
	if err != nil {
		return err
	}
	if gone {
		return f.whiteout(e)
	}
	if err = f.rename(e); errors.Is(err, unix.EISDIR) {
		if err = f.remove(e); err == nil {
			err = f.rename(e)
		}
	}
	return err
}

func (f *folder) rename(e *entry) error {
	return f.do("rename", func() error { return unix.Renameat(e.upper, e.name, e.lower, e.name) }, e.source(), e.target(), e.targetDir())
}

// whiteout removes a name, and the whiteout after it.
func (f *folder) whiteout(e *entry) error {
	if err := f.remove(e); err != nil {
		return err
	}
	return f.do("remove whiteout", func() error { return unix.Unlinkat(e.upper, e.name, 0) })
}

// placeDir replaces all that has the name of a directory by it. The name goes first: without a directory in its place
// this one will not be taken for a merged one, whatever marks it still has.
func (f *folder) placeDir(e *entry) error {
	if err := f.remove(e); err != nil {
		return err
	}
	if err := f.stripTree(e); err != nil {
		return err
	}
	return f.rename(e)
}

// remove removes the name of an entry in the volume's tree, and all that is below it.
func (f *folder) remove(e *entry) error {
	return f.do("remove", func() error {
		err := unix.Unlinkat(e.lower, e.name, 0)
		if errors.Is(err, unix.EISDIR) {
			return f.removeDir(e)
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}, e.target(), e.targetDir())
}

// removeDir removes a directory in the volume's tree.
func (f *folder) removeDir(e *entry) error {
	err := treeat.RemoveTree(f.ctx, e.lower, e.name)
	if errors.Is(err, unix.EPERM) {
		if err := f.unprotectTree(e.lower, e.name); err != nil {
			return err
		}
		err = treeat.RemoveTree(f.ctx, e.lower, e.name)
	}
	return err
}

// leave gives a merged directory its attributes, the times last, and removes the one in the folded directory.
func (f *folder) leave(l *level) (again bool, err error) {
	path := string(f.path)
	if path == "" {
		return f.leaveRoot(l)
	}
	cut := strings.LastIndexByte(path, '/')
	upper, lower, err := f.dirs(path[:cut])
	if err != nil {
		return false, err
	}
	source, target := treeat.File{Dir: upper, Name: path[cut+1:], FD: -1}, treeat.File{Dir: lower, Name: path[cut+1:], FD: -1}
	if err := f.setAttributes("directory", target, source, filemeta.SetTimes); err != nil {
		return false, err
	}
	return f.removeEmpty(source, l.seen)
}

// removeEmpty removes a directory that names were moved out of while it was read. Reading may have missed some.
func (f *folder) removeEmpty(dir treeat.File, seen int) (again bool, err error) {
	if err := f.ctx.Err(); err != nil {
		return false, err
	}
	err = unix.Unlinkat(dir.Dir, dir.Name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOTEMPTY) && seen > 0 {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove directory: %w", err)
	}
	return false, nil
}

// do takes a step, unless the context has ended. A protection of the files, such as "chattr +i" sets, does not hinder it:
// the owner of the overlay's tree has taken it away there, or could not have made the change.
func (f *folder) do(step string, action func() error, files ...treeat.File) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	err := action()
	if errors.Is(err, unix.EPERM) {
		for _, file := range files {
			if err := unprotect(file); err != nil {
				return fmt.Errorf("%s: %w", step, err)
			}
		}
		err = action()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}
