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

// insist repeats an operation that the kernel refuses for want of space, after a pause. If a limit is the cause, it
// commits before the pause, which gives back reserved space. Otherwise it wakes the cleaner, which frees destroyed
// subvolumes during the pause.
func (b *Backend) insist(operation func() error) error {
	const longest = 300 * time.Millisecond
	err := operation()
	for pause := 10 * time.Millisecond; fault.IsFull(err) && pause < longest; pause *= 3 {
		// Data deleted in a volume at its limit counts until the commit has ended.
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

// unlink unlinks the subvolume name from the directory dir. Returns ENOTEMPTY if other subvolumes are nested inside.
func (b *Backend) unlink(dir int, name string) error {
	return b.insist(func() error { return btrfsctl.DestroySubvolume(dir, name) })
}

// doom removes the volume for good. If the volume cannot be unlinked or hidden, it is as it was. If it is hidden and
// cannot be destroyed, no method finds it, and the next start destroys it.
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

// takeAway destroys the volume with one call. If subvolumes are nested inside, it hides the volume instead: by another
// name, or by a mark. Then it returns the name under which the volume is to be destroyed. After an error the volume is
// as it was.
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

// hide renames a volume within its directory, to a name that no volume has. A read-only volume cannot be moved to
// another directory, and must not become writable while it has its own name. The rename is durable when hide returns.
// Before that, nothing nested inside may be destroyed.
func (b *Backend) hide(name, as string) error {
	dir := int(b.dirs.subvolumes.Fd())
	if err := b.insist(func() error { return unix.Renameat(dir, name, dir, as) }); err != nil {
		return fmt.Errorf("take away: %w", err)
	}
	return b.commit()
}

// setSticky sets or clears the sticky bit of the directory removing. The bit says that volumes may be marked as doomed.
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

// markDoomed hides a volume under its own name, where there is no room for another name. It gives the volume's root an
// owner that marks it as doomed. The kernel overwrites the owner of a file and the mode of a directory in place, which
// takes no space.
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

// doomedOwner returns the owner that marks the root of a doomed subvolume. It is derived from the subvolume's own UUID.
// So no other subvolume has it, and a snapshot that inherits it is not marked by it.
func doomedOwner(uuid btrfsctl.UUID) (uid, gid uint32) {
	sum := sha256.Sum256(append([]byte("cowshed doomed "), uuid[:]...))
	return binary.LittleEndian.Uint32(sum[:])&^1 | highID, binary.LittleEndian.Uint32(sum[4:])&^1 | highID
}

// highID is set in the ids of doomed owners, and in few other ids. The lowest bit of these ids is clear, because the
// highest id means no owner.
const highID = 1 << 31

// errDoomed says that a volume has been removed, although its remains are not destroyed yet.
var errDoomed = fault.New(errdefs.ErrNotFound, "its removal has not ended")

// checkNotDoomed returns errDoomed if a volume's root has the owner that marks it as doomed. It believes the owner only
// if the sticky bit says that there may be doomed volumes. A process in a layer may know the layer's UUID, and can give
// its root any owner.
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
	if b.dirs.removing == nil { // a home of moby's driver, opened for reading alone
		return false, nil
	}
	info, err := b.dirs.removing.Stat()
	return err == nil && info.Mode()&fs.ModeSticky != 0, err
}

// destroyDoomed completes the removal of a doomed volume, after the process that began it has died. It does nothing
// while another process removes the volume.
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

// destroy unlinks the subvolume name of dir, with all subvolumes nested inside. It is for subvolumes that nobody should
// find any more: a crash may leave a part of the nested subvolumes destroyed.
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

// unprotect makes the subvolume whose root is open as fd writable, and clears the flags of its root that prevent
// unlinking.
func (b *Backend) unprotect(fd int) error {
	err := b.insist(func() error {
		return errors.Join(btrfsctl.SetReadOnly(fd, false), btrfsctl.AllowUnlink(fd))
	})
	if err != nil {
		return fmt.Errorf("make writable: %w", err)
	}
	return nil
}

// destroyNested destroys all subvolumes inside the subvolume id, at any depth, and leaves that subvolume writable.
//
// A process that can write to a layer can nest subvolumes in it, at any depth, and under paths longer than PATH_MAX. So
// destroyNested finds and destroys them by ids and inode numbers; it never resolves a path.
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

// openForDestruction makes a subvolume writable, and lists the subvolumes nested in it. In a read-only subvolume the
// kernel would unlink nothing.
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
		return nil, fmt.Errorf("list subvolumes nested in subvolume %d: %w", id, err)
	}
	return nested, nil
}

// destroyByID unlinks the subvolume id from the directory that has it, wherever that is. The subvolume has nothing
// nested inside.
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
		// Unlinking reserves space, which is charged to the outer subvolume. That subvolume is at its limit. It is
		// being destroyed too, so its limit can go.
		limitErr := b.insist(func() error {
			return b.quotas.SetLimit(b.ctx, link.ParentID, quota.Limit{}) // b.ctx: a removal that has begun is completed
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
