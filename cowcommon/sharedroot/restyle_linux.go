package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

func (b *Backend) setRootStyle(ctx context.Context, name string, style cowcommon.RootStyle) error {
	v, err := b.Backend.Stat(ctx, name)
	if err != nil {
		return err
	}
	if style == cowcommon.SnapshotRoot {
		if v.Sealed {
			return nil
		}
		return b.fold(ctx, name)
	}
	if err := b.canShare(name, v.Parent); err != nil {
		return err
	}
	return b.untilFolded(ctx, name, func() error { return b.setShared(ctx, name, v.Parent) })
}

// setShared gives a volume that was cloned from a sealed volume a shared root.
func (b *Backend) setShared(ctx context.Context, name, lower string) error {
	unlock, err := b.lock(ctx, append(b.wants(lower), exclusive(name))...)
	if err != nil {
		return err
	}
	defer unlock()
	return b.alone(ctx, name, func(root *os.File) error {
		s, _, err := inspect(root)
		if err != nil || s == stateShared {
			return err
		}
		if s == stateFolding {
			return errFolding
		}
		if err := b.checkLower(ctx, lower); err != nil {
			return err
		}
		if err := b.index.add(name, lower); err != nil {
			return err
		}
		err = b.hold(ctx, lower, func(dir string) error { return unfold(ctx, root, dir, lower) })
		if err == nil {
			err = unix.Syncfs(int(root.Fd()))
		}
		return err
	})
}

// checkLower reports whether a volume can be the lower of others.
func (b *Backend) checkLower(ctx context.Context, lower string) error {
	if lower == "" {
		return fault.New(errdefs.ErrFailedPrecondition, "it was cloned from no volume, or that volume is gone: there is nothing to share")
	}
	v, err := b.Backend.Stat(ctx, lower)
	if err == nil && !v.Sealed {
		err = fault.New(errdefs.ErrFailedPrecondition, "it was cloned from volume %s, which is not sealed", lower)
	}
	return err
}

// unfold gives a volume of style snapshot, whose root is open for reading, a root that is shared over the tree in
// lowerDir. Nobody else may use the volume meanwhile. It walks both trees. The upper gets reflinks of the files that the
// volume has changed.
//
// After a crash or a power cut the volume is shared, or it is in stateFolding and fold restores it. The steps are in this
// order for that:
//
//  1. The changes are copied to the directory that fold removes.
//  2. The directory gets the name of an upper that is folded, which would put all that it has in its place.
//  3. The names that the lower does not have are removed from the tree, so that no later fold finds them there.
//  4. The directory gets the name of the upper.
func unfold(ctx context.Context, root *os.File, lowerDir, lower string) error {
	changed, err := treediff.Compare(ctx, root.Name(), lowerDir, nil)
	if err != nil {
		return err
	}
	rootFD := int(root.Fd())
	if err := checkFree(rootFD); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(rootFD, &st); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	file := treeat.File{FD: rootFD}
	if err := writeNote(file, &st); err != nil { // from here on the volume is in stateFolding
		return fmt.Errorf("root: %w", err)
	}
	if err := unfoldInto(ctx, root, lower, changed, &st); err != nil {
		return errors.Join(err, fold(context.WithoutCancel(ctx), root))
	}
	return nil
}

// checkFree refuses a tree that has a file of the reserved name.
func checkFree(root int) error {
	isThere, err := exists(root, sharedmark.Dir)
	if err == nil && isThere {
		err = fault.New(errdefs.ErrFailedPrecondition, "the tree has a file /%s, which a shared root cannot have", sharedmark.Dir)
	}
	return err
}

func unfoldInto(ctx context.Context, root *os.File, lower string, changed []archive.Change, st *unix.Stat_t) error {
	rootFD := int(root.Fd())
	if err := unix.Mkdirat(rootFD, sharedmark.Dir, dirMode); err != nil {
		return fmt.Errorf("make directory %s: %w", sharedmark.Dir, err)
	}
	own, err := treeat.Open(rootFD, sharedmark.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", sharedmark.Dir, err)
	}
	defer unix.Close(own)
	if err := makePrivate(own, lower); err != nil {
		return fmt.Errorf("directory %s: %w", sharedmark.Dir, err)
	}
	for _, name := range []string{workName, stagedName} {
		if err := unix.Mkdirat(own, name, dirMode); err != nil {
			return fmt.Errorf("make directory %s: %w", name, err)
		}
	}
	if err := copyChanges(ctx, own, root, changed, st); err != nil {
		return err
	}
	if err := unix.Renameat(own, stagedName, own, foldingName); err != nil {
		return fmt.Errorf("rename directory %s: %w", stagedName, err)
	}
	if err := removeAdded(ctx, rootFD, changed); err != nil {
		return err
	}
	file := treeat.File{FD: rootFD}
	if err := errors.Join(filemeta.SetTimes(file, st), removeNote(file)); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if err := unix.Renameat(own, foldingName, own, upperName); err != nil {
		return fmt.Errorf("rename directory %s: %w", foldingName, err)
	}
	return nil
}

// copyChanges writes the changes of the tree to the new upper.
func copyChanges(ctx context.Context, own int, root *os.File, changed []archive.Change, st *unix.Stat_t) error {
	fd, err := treeat.Open(own, stagedName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open the upper directory: %w", err)
	}
	upper := os.NewFile(uintptr(fd), path.Join(root.Name(), sharedmark.Dir, stagedName))
	defer upper.Close()
	if _, err := treecopy.Overlay(ctx, upper, root, changed, treecopy.Options{}); err != nil {
		return err
	}
	if err := filemeta.SetTimes(treeat.File{FD: fd}, st); err != nil {
		return fmt.Errorf("upper directory: %w", err)
	}
	return removeNote(treeat.File{FD: fd})
}

// removeAdded removes all that the tree has and the lower does not have.
func removeAdded(ctx context.Context, root int, changed []archive.Change) error {
	dirs := treeat.DirStack{Root: root}
	defer dirs.Close()
	removed := "" // with all that is below it
	for _, c := range changed {
		if c.Kind != archive.ChangeAdd || removed != "" && strings.HasPrefix(c.Path, removed+"/") {
			continue
		}
		removed = c.Path
		parent, name := path.Split(c.Path)
		dir, err := dirs.Dir(strings.TrimSuffix(parent, "/"))
		if err == nil {
			err = treeat.RemoveTree(ctx, dir, name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", treeat.Quote(c.Path), err)
		}
	}
	return nil
}
