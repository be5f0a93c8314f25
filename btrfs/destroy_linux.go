package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/quota"
)

// errNotSubvolume says that something is not the root of a subvolume, so Cowshed did not make it.
var errNotSubvolume = fmt.Errorf("not a subvolume: %w", errdefs.ErrFailedPrecondition)

// subvolume is the open root directory of a subvolume, and what the kernel says about it.
type subvolume struct {
	*os.File
	info btrfsctl.Subvolume
}

func (s *subvolume) fd() int { return int(s.Fd()) }

// reopen opens the root again, for use beyond the subvolume's Close.
func (s *subvolume) reopen() (*os.File, error) {
	fd, err := unix.Openat(s.fd(), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: s.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), s.Name()), nil
}

// openSubvolume opens the root of the subvolume name in dir, one of the layout's directories.
func (b *Backend) openSubvolume(dir *os.File, name string) (*subvolume, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	path := dir.Name() + "/" + name
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s: %w", path, errNotSubvolume)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	s := &subvolume{File: os.NewFile(uintptr(fd), path)}
	if s.info, err = btrfsctl.Info(fd); err != nil {
		return nil, errors.Join(fmt.Errorf("subvolume %s: %w", s.Name(), err), s.Close())
	}
	if s.info.ID == b.dirs.subvolumesID { // an ordinary directory of the subvolume that holds the layout
		return nil, errors.Join(fmt.Errorf("%s: %w", s.Name(), errNotSubvolume), s.Close())
	}
	return s, nil
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
	if err := b.markQgroup(root.info.ID); err != nil {
		return err
	}
	err = btrfsctl.DestroySubvolume(int(dir.Fd()), name)
	if errors.Is(err, unix.ENOTEMPTY) {
		if err := b.destroyNested(root.info.ID); err != nil {
			return fmt.Errorf("subvolumes nested in %s: %w", root.Name(), err)
		}
		err = btrfsctl.DestroySubvolume(int(dir.Fd()), name)
	}
	if errors.Is(err, unix.EPERM) && unprotect(root.fd()) == nil {
		err = btrfsctl.DestroySubvolume(int(dir.Fd()), name)
	}
	if err != nil {
		return fmt.Errorf("destroy subvolume %s: %w", root.Name(), err)
	}
	return nil
}

// unprotect makes the subvolume whose root is open as fd writable, and takes flags off its root that keep it
// from being unlinked.
func unprotect(fd int) error {
	return errors.Join(btrfsctl.SetReadOnly(fd, false), btrfsctl.AllowUnlink(fd))
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
	if err := unprotect(fd); err != nil {
		return nil, fmt.Errorf("make subvolume %d writable: %w", id, err)
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
	if err := b.markQgroup(id); err != nil {
		return err
	}
	err = btrfsctl.DestroySubvolume(dir, link.Name)
	if errors.Is(err, unix.EPERM) && btrfsctl.AllowUnlink(dir) == nil {
		err = btrfsctl.DestroySubvolume(dir, link.Name)
	}
	return err
}

// markQgroup notes that the qgroup of the subvolume id, which is about to be destroyed, has to go. It
// cannot go before the kernel has dropped the subvolume, which may be long after; the mark outlives a
// crash and says that the qgroup was Cowshed's.
func (b *Backend) markQgroup(id uint64) error {
	mode, err := b.quotas.Mode()
	if err != nil || mode == quota.Off {
		return err
	}
	fd, err := unix.Openat(int(b.dirs.removing.Fd()), qgroupMark+strconv.FormatUint(id, 10),
		unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("mark qgroup of subvolume %d: %w", id, err)
	}
	return unix.Close(fd)
}

// sweepQgroups removes the marked qgroups that can be removed by now, and their marks. The others stay
// for the next time.
func (b *Backend) sweepQgroups() error {
	entries, err := os.ReadDir(b.dirs.removing.Name())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !isQgroupMark(entry) {
			continue
		}
		id, _ := markedQgroup(entry.Name())
		err := b.quotas.Remove(id)
		if errors.Is(err, quota.ErrNotYet) {
			continue
		}
		if err != nil {
			return err
		}
		if err := unix.Unlinkat(int(b.dirs.removing.Fd()), entry.Name(), 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmark qgroup of subvolume %d: %w", id, err)
		}
	}
	return nil
}
