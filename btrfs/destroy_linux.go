package btrfs

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/quota"
)

// insist repeats an operation that the kernel refuses for want of space, after a commit and a while: the one gives back
// what was only reserved, in the other the cleaner frees what has been destroyed.
func (b *Backend) insist(operation func() error) error {
	const longest = 300 * time.Millisecond
	err := operation()
	for pause := 10 * time.Millisecond; fault.IsFull(err) && pause < longest; pause *= 3 {
		// What was deleted in a volume at its limit counts until the commit has ended.
		if errors.Is(err, unix.EDQUOT) {
			if commit := b.commit(); commit != nil {
				return errors.Join(err, commit)
			}
		} else if wake := btrfsctl.WakeCleaner(int(b.fs.Fd())); wake != nil {
			return errors.Join(err, wake)
		}
		time.Sleep(pause)
		err = operation()
	}
	return err
}

// unlink unlinks the subvolume name, which has nothing nested inside, from the directory dir.
func (b *Backend) unlink(dir int, name string) error {
	return b.insist(func() error { return btrfsctl.DestroySubvolume(dir, name) })
}

// doom takes the volume away for good. If that fails, the volume is as it was, unless the error is about what is left
// of it where nobody finds it.
func (c *claimed) doom() error {
	c.b.markQgroup(c.info.ID)
	as, err := c.takeAway()
	if err != nil {
		c.b.unmarkQgroup(c.info.ID)
		return err
	}
	if as == "" {
		return nil
	}
	return c.b.destroy(c.b.dirs.subvolumes, as)
}

// takeAway destroys the volume with one call or, if something is nested inside, hides it under a name or mark of what is
// to be destroyed, and returns its name then.
func (c *claimed) takeAway() (as string, err error) {
	unlink := func() error { return c.b.unlink(int(c.b.dirs.subvolumes.Fd()), c.name) }
	err = unlink()
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTEMPTY) {
		return "", err
	}
	protection, readErr := btrfsctl.ProtectionOf(c.fd())
	if readErr != nil {
		return "", errors.Join(err, readErr)
	}
	if errors.Is(err, unix.EPERM) && protection != 0 {
		if err = c.b.unprotect(c.fd()); err == nil {
			err = unlink()
		}
	}
	if errors.Is(err, unix.ENOTEMPTY) {
		as = staging.Name(removedPrefix + c.name + "~")
		if err = c.b.hide(c.name, as); fault.IsFull(err) {
			as, err = c.name, c.b.markDoomed(c)
		}
	}
	if err != nil {
		err = errors.Join(err, btrfsctl.Protect(c.fd(), protection), c.setReadOnly(c.info.ReadOnly))
	}
	return as, err
}

// hide renames a volume away, within its directory: a read-only one cannot be moved to another, and is not to be made
// writable before it is gone. Not before it is gone for good may a part of what is inside go.
func (b *Backend) hide(name, as string) error {
	dir := int(b.dirs.subvolumes.Fd())
	if err := b.insist(func() error { return unix.Renameat(dir, name, dir, as) }); err != nil {
		return fmt.Errorf("take away: %w", err)
	}
	return b.commit()
}

// setSticky sets the sticky bit of the directory removing, which says that volumes may be marked as doomed.
func (b *Backend) setSticky(on bool) error {
	info, err := b.dirs.removing.Stat()
	if err != nil {
		return err
	}
	mode := info.Mode() &^ fs.ModeSticky
	if on {
		mode |= fs.ModeSticky
	}
	return b.dirs.removing.Chmod(mode)
}

// markDoomed hides a volume under its own name, where there is no room for another: its root gets an owner that says so.
// The owner of a file and the mode of a directory are overwritten in place, which needs nothing new.
func (b *Backend) markDoomed(c *claimed) error {
	err := b.unprotect(c.fd())
	if err == nil {
		err = b.insist(func() error { return b.setSticky(true) })
	}
	if err == nil {
		uid, gid := doomedOwner(c.info.UUID)
		err = b.insist(func() error { return unix.Fchown(c.fd(), int(uid), int(gid)) })
	}
	if err != nil {
		return fmt.Errorf("mark as removed: %w", err)
	}
	return b.commit()
}

// doomedOwner is the owner of the root of a doomed subvolume. It follows from the subvolume's own UUID, so no other has
// it, and no snapshot inherits its meaning.
func doomedOwner(uuid btrfsctl.UUID) (uid, gid uint32) {
	sum := sha256.Sum256(append([]byte("cowshed doomed "), uuid[:]...))
	return binary.LittleEndian.Uint32(sum[:])&^1 | highID, binary.LittleEndian.Uint32(sum[4:])&^1 | highID
}

// highID is set in the ids of doomed owners, and in few others. The last bit is not: the highest id means none.
const highID = 1 << 31

// errDoomed says that a volume has been removed, if not all of it is destroyed.
var errDoomed = fault.New(errdefs.ErrNotFound, "its removal has not ended")

// checkNotDoomed looks at a volume's owner, and believes it only if the sticky bit says that there may be doomed volumes:
// a process in a layer, which may know the layer's UUID, can give its root any owner.
func (b *Backend) checkNotDoomed(s *subvolume) error {
	var stat unix.Stat_t
	if err := unix.Fstat(s.fd(), &stat); err != nil {
		return &fs.PathError{Op: "stat", Path: s.Name(), Err: err}
	}
	if stat.Uid&highID == 0 || stat.Gid&highID == 0 {
		return nil
	}
	if uid, gid := doomedOwner(s.info.UUID); stat.Uid != uid || stat.Gid != gid {
		return nil
	}
	marked, err := b.mayBeDoomed()
	if err == nil && marked {
		err = fmt.Errorf("%s: %w", s.Name(), errDoomed)
	}
	return err
}

// mayBeDoomed reports whether there may be doomed volumes.
func (b *Backend) mayBeDoomed() (bool, error) {
	if b.dirs.removing == nil { // a home of moby's driver that is only read
		return false, nil
	}
	info, err := b.dirs.removing.Stat()
	return err == nil && info.Mode()&fs.ModeSticky != 0, err
}

// destroyDoomed goes on with the removal of a volume that a process has died of, unless another is at it.
func (b *Backend) destroyDoomed(name string) error {
	dir, err := b.openSubvolume(b.dirs.subvolumes, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if ok, err := flock.TryExclusive(dir.File); !ok {
		return err
	}
	if !errors.Is(b.checkNotDoomed(dir), errDoomed) {
		return nil // another volume by now
	}
	return b.destroy(b.dirs.subvolumes, name)
}

// destroy unlinks the subvolume name of dir with whatever subvolumes are nested inside. It is for what
// nobody should find any more: a crash may leave some of the nested ones destroyed.
func (b *Backend) destroy(dir *os.File, name string) error {
	root, err := b.openSubvolume(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	b.expectQgroup(root.info.ID)
	err = b.unlink(int(dir.Fd()), name)
	if errors.Is(err, unix.ENOTEMPTY) {
		if err := b.destroyNested(root.info.ID); err != nil {
			return fmt.Errorf("subvolumes nested in %s: %w", root.Name(), err)
		}
		err = b.unlink(int(dir.Fd()), name)
	}
	if errors.Is(err, unix.EPERM) && b.unprotect(root.fd()) == nil {
		err = b.unlink(int(dir.Fd()), name)
	}
	if err != nil {
		return fmt.Errorf("destroy subvolume %s: %w", root.Name(), err)
	}
	return nil
}

// unprotect makes the subvolume whose root is open as fd writable, and takes flags off its root that keep it
// from being unlinked.
func (b *Backend) unprotect(fd int) error {
	err := b.insist(func() error {
		return errors.Join(btrfsctl.SetReadOnly(fd, false), btrfsctl.AllowUnlink(fd))
	})
	if err != nil {
		return fmt.Errorf("make writable: %w", err)
	}
	return nil
}

// destroyNested destroys all subvolumes inside the subvolume id, at any depth, and leaves it writable.
//
// Whoever may write to a layer may nest subvolumes in it, as deep and under such paths as they like, longer
// than any path can be. So they are found and destroyed by ids and inode numbers; no path is ever resolved.
func (b *Backend) destroyNested(id uint64) error {
	ids := []uint64{id} // every subvolume before those nested in it
	for i := 0; i < len(ids); i++ {
		nested, err := b.openForDestruction(ids[i])
		if err != nil {
			return err
		}
		for _, ref := range nested {
			ids = append(ids, ref.ID)
		}
	}
	for i := len(ids) - 1; i > 0; i-- {
		if err := b.destroyByID(ids[i]); err != nil {
			return fmt.Errorf("destroy subvolume %d: %w", ids[i], err)
		}
	}
	return nil
}

// openForDestruction makes a subvolume writable, without which nothing nested in it could be unlinked,
// and lists what is nested.
func (b *Backend) openForDestruction(id uint64) ([]btrfsctl.RootRef, error) {
	fd, err := btrfsctl.OpenRoot(int(b.fs.Fd()), id)
	if err != nil {
		return nil, fmt.Errorf("open subvolume %d: %w", id, err)
	}
	defer unix.Close(fd)
	if err := b.unprotect(fd); err != nil {
		return nil, fmt.Errorf("subvolume %d: %w", id, err)
	}
	nested, err := btrfsctl.Nested(fd)
	if err != nil {
		return nil, fmt.Errorf("list what is nested in subvolume %d: %w", id, err)
	}
	return nested, nil
}

// destroyByID unlinks the subvolume id, which has nothing nested inside, from wherever it is linked.
func (b *Backend) destroyByID(id uint64) error {
	link, err := btrfsctl.LinkByID(int(b.fs.Fd()), id)
	if err != nil {
		return err
	}
	dir, err := btrfsctl.OpenDir(int(b.fs.Fd()), link.ParentID, link.DirID)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	b.expectQgroup(id)
	err = btrfsctl.DestroySubvolume(dir, link.Name)
	if errors.Is(err, unix.EDQUOT) {
		// The subvolume around it, which goes too, is charged for what unlinking reserves, and is at its limit.
		limitErr := b.insist(func() error {
			return b.quotas.SetLimit(b.ctx, link.ParentID, quota.Limit{}) // what has begun to be destroyed is destroyed
		})
		if limitErr != nil {
			return errors.Join(err, limitErr)
		}
	}
	if fault.IsFull(err) {
		err = b.unlink(dir, link.Name)
	}
	if errors.Is(err, unix.EPERM) && btrfsctl.AllowUnlink(dir) == nil {
		err = b.unlink(dir, link.Name)
	}
	return err
}
