package loopstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/syncdir"
)

// State says how far the store is there. errdefs.ErrFailedPrecondition: there is a file in place of the
// image that this package did not make.
func (s Store) State() (State, error) {
	f, err := s.openImage(os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return Absent, nil
	}
	if err != nil {
		return Absent, fmt.Errorf("loopstore: %w", err)
	}
	defer f.Close()
	return s.state(f)
}

func (s Store) state(image *os.File) (State, error) {
	mounted, err := s.mounted(image)
	if err != nil {
		return Absent, fmt.Errorf("loopstore: %w", err)
	}
	if mounted {
		return Mounted, nil
	}
	return Detached, nil
}

// openImage opens the image if it is one that this package made.
func (s Store) openImage(flag int) (*os.File, error) {
	info, err := os.Lstat(s.Image)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, s.notOurs(errNotRegular)
	}
	f, err := os.OpenFile(s.Image, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := checkOurs(f); err != nil {
		return nil, errors.Join(s.notOurs(err), f.Close())
	}
	return f, nil
}

var errNotRegular = errors.New("it is not a regular file")

func (s Store) notOurs(why error) error {
	return fmt.Errorf("%s was not made by Cowshed and is left alone: %w: %w", s.Image, why, errdefs.ErrFailedPrecondition)
}

func checkOurs(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errNotRegular
	}
	sb, err := readSuperblock(f)
	if err != nil {
		return err
	}
	if sb.label != Label {
		return fmt.Errorf("its filesystem label is %q, not %q", sb.label, Label)
	}
	return nil
}

// Make sees to it that there is an image of at least size bytes and that it is mounted. What is there
// already stays as it is; a smaller image is made larger.
//
// errdefs.ErrInvalidArgument: the size is too small. errdefs.ErrFailedPrecondition: the directory has
// something in it, or there is another file in place of the image. errdefs.ErrNotImplemented: there is no
// mkfs.btrfs, no loop device, or no btrfs in the kernel.
func (s Store) Make(ctx context.Context, size uint64) (made Made, err error) {
	state, err := s.State()
	if err != nil {
		return made, err
	}
	if state != Absent {
		if made.Mount, err = s.Mount(); err != nil {
			return made, err
		}
		made.Size, made.Grown, err = s.grow(ctx, size)
		return made, err
	}

	if size < MinSize {
		return made, fmt.Errorf("loopstore: a store of %d bytes is too small, it needs at least %d: %w", size, uint64(MinSize), errdefs.ErrInvalidArgument)
	}
	madeRoot, err := s.makeRoot()
	if err != nil {
		return made, fmt.Errorf("loopstore: %w", err)
	}
	defer func() {
		if err != nil && madeRoot {
			_ = os.Remove(s.Root)
		}
	}()
	if err := s.makeImage(ctx, size); err != nil {
		return made, fmt.Errorf("loopstore: make %s: %w", s.Image, err)
	}
	made.Image, made.Size = true, size
	if made.Mount, err = s.Mount(); err != nil {
		return Made{}, errors.Join(err, os.Remove(s.Image))
	}
	return made, nil
}

// makeRoot makes the directory unless it is there, in which case it must be empty.
func (s Store) makeRoot() (made bool, err error) {
	if err := os.MkdirAll(filepath.Dir(s.Root), 0o711); err != nil {
		return false, err
	}
	err = os.Mkdir(s.Root, 0o711)
	if errors.Is(err, fs.ErrExist) {
		return false, s.checkEmpty()
	}
	return err == nil, err
}

// checkEmpty refuses to hide files under a mount.
func (s Store) checkEmpty() error {
	entries, err := os.ReadDir(s.Root)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("directory %s is not empty, and what is in it would be hidden; choose another or move that away: %w", s.Root, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// makeImage makes the image under a temporary name, complete, and then gives it its own.
func (s Store) makeImage(ctx context.Context, size uint64) (err error) {
	mkfs, err := lookTool("mkfs.btrfs")
	if err != nil {
		return err
	}
	if err := s.removeStale(); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(s.Image), filepath.Base(s.Image)+partialMark)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	if err := run(ctx, mkfs, "-q", "-L", Label, f.Name()); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, s.Image, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("rename %s to %s: %w", f.Name(), s.Image, err)
	}
	return syncdir.Sync(filepath.Dir(s.Image))
}

// partialMark stands in the names of images that are not complete.
const partialMark = ".partial-"

// removeStale removes what a Make that was cut off has left. Those at work hold a lock.
func (s Store) removeStale() error {
	names, err := filepath.Glob(globEscape(s.Image+partialMark) + "[0-9]*")
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // gone meanwhile, or not a file of ours
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(name)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// globEscape makes a pattern that matches s alone.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// grow makes the image, which is mounted, and the filesystem in it larger if they are smaller than size. It
// returns the size that the image then has, in bytes.
func (s Store) grow(ctx context.Context, size uint64) (now uint64, grown bool, err error) {
	f, err := s.openImage(os.O_RDWR)
	if err != nil {
		return 0, false, fmt.Errorf("loopstore: grow: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, false, fmt.Errorf("loopstore: grow: %w", err)
	}
	if now = uint64(info.Size()); now >= size {
		return now, false, nil
	}
	btrfs, err := lookTool("btrfs")
	if err == nil {
		err = f.Truncate(int64(size))
	}
	if err == nil {
		err = s.updateLoop(f)
	}
	if err == nil {
		err = run(ctx, btrfs, "filesystem", "resize", "max", s.Root)
	}
	if err != nil {
		return 0, false, fmt.Errorf("loopstore: grow %s: %w", s.Image, err)
	}
	return size, true, nil
}

// Mount mounts the image on the directory, if it is not mounted there. It reports whether it did so.
// fs.ErrNotExist: there is no image.
func (s Store) Mount() (mounted bool, err error) {
	f, err := s.openImage(os.O_RDWR)
	if err != nil {
		return false, fmt.Errorf("loopstore: mount: %w", err)
	}
	// Two processes must not attach the image twice. The loop device keeps the file open that it is given,
	// and with it the lock, which therefore does not end with the descriptor.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, errors.Join(fmt.Errorf("loopstore: lock %s: %w", s.Image, err), f.Close())
	}
	defer func() { err = errors.Join(err, unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close()) }()
	state, err := s.state(f)
	if err != nil || state == Mounted {
		return false, err
	}
	if err := s.mount(f); err != nil {
		return false, fmt.Errorf("loopstore: mount %s on %s: %w", s.Image, s.Root, err)
	}
	return true, nil
}

func (s Store) mount(f *os.File) error {
	if _, err := s.makeRoot(); err != nil {
		return err
	}
	loop, err := attach(f, s.Image)
	if err != nil {
		return err
	}
	// The device detaches itself with its last user, which from here on is the mount.
	defer loop.Close()
	err = unix.Mount(loop.Name(), s.Root, "btrfs", unix.MS_NOATIME, "")
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the kernel has no btrfs: %w: %w", err, errdefs.ErrNotImplemented)
	}
	return err
}

// Remove unmounts the store and deletes the image with all that is in it, and the directory if it is
// empty. errdefs.ErrFailedPrecondition: something uses the store, or the image is not ours.
// fs.ErrNotExist: there is no image.
func (s Store) Remove() error {
	f, err := s.openImage(os.O_RDWR)
	if err != nil {
		return fmt.Errorf("loopstore: remove: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("loopstore: lock %s: %w", s.Image, err)
	}
	state, err := s.state(f)
	if err != nil {
		return err
	}
	if state == Mounted {
		if err := s.checkNotElsewhere(f); err != nil {
			return err
		}
		err := unix.Unmount(s.Root, 0)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("loopstore: unmount %s: it is in use (fuser -vm %[1]s shows by whom): %w: %w", s.Root, err, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return fmt.Errorf("loopstore: unmount %s: %w", s.Root, err)
		}
	}
	if err := os.Remove(s.Image); err != nil {
		return fmt.Errorf("loopstore: %w", err)
	}
	if err := s.removeStale(); err != nil {
		return fmt.Errorf("loopstore: %w", err)
	}
	// The directory stays if someone has put something into it.
	if err := os.Remove(s.Root); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("loopstore: %w", err)
	}
	return syncdir.Sync(filepath.Dir(s.Image))
}

// run runs a program, whose output becomes part of the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// lookTool finds an administrator's program, which is often not in the PATH of users.
func lookTool(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the program %s is missing: install the package btrfs-progs: %w", name, errdefs.ErrNotImplemented)
}
