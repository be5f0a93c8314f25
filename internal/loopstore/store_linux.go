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

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// State returns the state of the store. Returns errdefs.ErrFailedPrecondition if a file is in place of the image that
// this package did not make.
func (s Store) State() (State, error) {
	f, err := s.openImage(os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return Absent, nil
	}
	if err != nil {
		return Absent, err
	}
	defer f.Close()
	return s.state(f)
}

func (s Store) state(image *os.File) (State, error) {
	mounted, err := s.mounted(image)
	if err != nil {
		return Absent, err
	}
	if mounted {
		return Mounted, nil
	}
	return Detached, nil
}

// openImage opens the image if this package made it.
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

// openImageToUse opens the image to be written to, or read-only where its filesystem is.
func (s Store) openImageToUse() (_ *os.File, readOnly bool, err error) {
	f, err := s.openImage(os.O_RDWR)
	if errors.Is(err, unix.EROFS) {
		readOnly = true
		f, err = s.openImage(os.O_RDONLY)
	}
	return f, readOnly, err
}

var errNotRegular = errors.New("it is not a regular file")

func (s Store) notOurs(why error) error {
	return fault.New(errdefs.ErrFailedPrecondition, "%s was not made by Cowshed and is left alone: %w", s.Image, why)
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

// Make sees to it that there is an image of at least size bytes and that it is mounted. Existing content stays as it
// is. A smaller image is made larger. An image whose growth was interrupted is made as large inside as it is outside.
// With force the image may exceed the room of its filesystem.
//
// Returns errdefs.ErrInvalidArgument if the size is too small, and ErrNoRoom if it exceeds the room of the
// filesystem. Returns errdefs.ErrFailedPrecondition if the directory is not empty, or if another file is in place of
// the image. Returns errdefs.ErrNotImplemented if there is no mkfs.btrfs, no loop device, or no btrfs in the kernel.
func (s Store) Make(ctx context.Context, size uint64, force bool) (made Made, err error) {
	state, err := s.State()
	if err != nil {
		return made, err
	}
	madeRoot := false
	if state == Absent {
		if size < MinSize {
			return made, fault.New(errdefs.ErrInvalidArgument, "a store of %d bytes is too small, it needs at least %d", size, uint64(MinSize))
		}
		if madeRoot, err = s.makeRoot(); err != nil {
			return made, err
		}
		if !force {
			err = s.checkRoom(size, 0)
		}
		if err == nil {
			made.Image, err = s.makeImage(ctx, size)
		}
		if err != nil {
			if madeRoot {
				_ = os.Remove(s.Root) // unless another process uses it by now
			}
			return Made{}, fault.Wrap("make image", s.Image, err)
		}
	}
	image, err := s.openLocked(ctx)
	if err != nil {
		return Made{}, err
	}
	defer func() { err = errors.Join(err, flock.Release(image)) }()
	if made.Mount, err = s.mountLocked(image); err != nil {
		if made.Image { // nobody else can have mounted it
			err = errors.Join(err, os.Remove(s.Image))
		}
		if madeRoot {
			_ = os.Remove(s.Root)
		}
		return Made{}, err
	}
	made.Size, made.Grown, err = s.grow(ctx, image, size, force)
	return made, err
}

// openLocked opens the image and locks it, so that it is attached, made larger and deleted by one process at a time.
// The caller releases it with flock.Release. The lock is on the image that has the name, not on an image that had it
// when it was opened.
func (s Store) openLocked(ctx context.Context) (*os.File, error) {
	for {
		f, _, err := s.openImageToUse()
		if err != nil {
			return nil, err
		}
		if err := flock.Exclusive(ctx, f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		same, err := flock.IsAt(f, s.Image)
		if err == nil && same {
			return f, nil
		}
		if err := errors.Join(err, flock.Release(f)); err != nil {
			return nil, err
		}
	}
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
		return fault.New(errdefs.ErrFailedPrecondition, "directory %s is not empty, and its content would be hidden; choose another or move the content away", s.Root)
	}
	return nil
}

// makeImage makes the image under a temporary name, complete, and then gives it its own. It returns false if another
// process was quicker.
func (s Store) makeImage(ctx context.Context, size uint64) (made bool, err error) {
	mkfs, err := admintool.Look("mkfs.btrfs")
	if err != nil {
		return false, missing("mkfs.btrfs")
	}
	if err := s.removeStale(); err != nil {
		return false, err
	}
	f, err := s.createPartial(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		err = errors.Join(err, flock.Release(f))
		if !made {
			_ = os.Remove(f.Name())
		}
	}()
	if err := f.Truncate(int64(size)); err != nil {
		return false, err
	}
	if err := runMkfs(ctx, mkfs, f.Name()); err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, s.Image, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("rename %s to %s: %w", f.Name(), s.Image, err)
	}
	return true, syncdir.Sync(filepath.Dir(s.Image))
}

// partialMark stands in the names of images that are not complete.
const partialMark = ".partial-"

// runMkfs makes a btrfs in a file that is nobody else's. mkfs.btrfs looks whether the file is mounted by asking each
// loop device that is, and fails if one is detached meanwhile. So it is run again.
func runMkfs(ctx context.Context, mkfs, file string) (err error) {
	for range 5 {
		if err = run(ctx, mkfs, "-q", "-f", "-L", Label, file); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// createPartial makes the file for an incomplete image, and locks it. Before it is locked, another process may take
// it for left over.
func (s Store) createPartial(ctx context.Context) (*os.File, error) {
	for {
		f, err := os.CreateTemp(filepath.Dir(s.Image), filepath.Base(s.Image)+partialMark)
		if err != nil {
			return nil, err
		}
		err = flock.Exclusive(ctx, f)
		same := false
		if err == nil {
			same, err = flock.IsAt(f, f.Name())
		}
		if same {
			return f, nil
		}
		if err := errors.Join(err, flock.Release(f)); err != nil {
			return nil, err
		}
	}
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeStale removes the remains of a Make that was cut off. Files in use are locked.
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
		stale, err := flock.TryExclusive(f)
		if stale {
			err = ignoreNotExist(os.Remove(name)) // another process may do the same
		}
		if err := errors.Join(err, flock.Release(f)); err != nil {
			return err
		}
	}
	return nil
}

// globEscape makes a pattern that matches s alone.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// grow enlarges the image, which is mounted and locked, and the filesystem in it to size, if they are smaller. It
// makes the filesystem as large as the image. It returns the size that the image then has, in bytes.
func (s Store) grow(ctx context.Context, image *os.File, size uint64, force bool) (now uint64, grown bool, err error) {
	defer func() {
		if err != nil {
			err = fault.Wrap("grow image", s.Image, err)
		}
	}()
	info, err := image.Stat()
	if err != nil {
		return 0, false, err
	}
	sb, err := readSuperblock(image)
	if err != nil {
		return 0, false, err
	}
	now = uint64(info.Size())
	if now >= size && sb.fills(now) {
		return now, false, nil
	}
	btrfs, err := admintool.Look("btrfs")
	if err != nil {
		return 0, false, missing("btrfs")
	}
	if now < size {
		if !force {
			if err := s.checkRoom(size, allocated(info)); err != nil {
				return 0, false, err
			}
		}
		if err := image.Truncate(int64(size)); err != nil {
			return 0, false, err
		}
		now = size
	}
	if err := s.updateLoop(image); err != nil {
		return 0, false, err
	}
	if err := run(ctx, btrfs, "filesystem", "resize", "max", s.Root); err != nil {
		return 0, false, err
	}
	return now, true, nil
}

// Mount mounts the image on the directory, if it is not mounted there, read-only if the image can only be read. It
// reports whether it did so. Returns fs.ErrNotExist if there is no image.
func (s Store) Mount(ctx context.Context) (mounted bool, err error) {
	image, err := s.openLocked(ctx)
	if err != nil {
		return false, fault.Wrap("mount image", s.Image, err)
	}
	defer func() { err = errors.Join(err, flock.Release(image)) }()
	return s.mountLocked(image)
}

// mountLocked mounts the image, which is locked, if it is not mounted.
func (s Store) mountLocked(image *os.File) (mounted bool, err error) {
	state, err := s.state(image)
	if err != nil || state == Mounted {
		return false, err
	}
	if err := s.mount(); err != nil {
		return false, fault.WrapWith("mount image", s.Image, "on "+s.Root, err)
	}
	return true, nil
}

func (s Store) mount() error {
	if _, err := s.makeRoot(); err != nil {
		return err
	}
	return s.mountOnRoot()
}

// mountOnRoot mounts the image on the directory, whatever is in there.
func (s Store) mountOnRoot() error {
	// The loop device keeps its file open. A locked file would stay locked as long as the device exists, even when
	// this process is killed.
	f, readOnly, err := s.openImageToUse()
	if err != nil {
		return err
	}
	defer f.Close()
	loop, err := attach(f, s.Image, readOnly)
	if err != nil {
		return err
	}
	// The device detaches itself with its last user, which from here on is the mount.
	defer loop.Close()
	flags := uintptr(unix.MS_NOATIME)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	err = unix.Mount(loop.Name(), s.Root, "btrfs", flags, "")
	if errors.Is(err, unix.ENODEV) {
		return fault.New(errdefs.ErrNotImplemented, "the kernel has no btrfs: %w", err)
	}
	return err
}

// Remove unmounts the store and deletes the image with all that is in it, and the directory if it is empty. Returns
// errdefs.ErrFailedPrecondition if the store is in use in any mount namespace, or if this package did not make the image.
// Then it stays mounted if it was. Returns fs.ErrNotExist if there is no image.
func (s Store) Remove(ctx context.Context) error {
	f, err := s.openLocked(ctx)
	if err != nil {
		return fault.Wrap("remove image", s.Image, err)
	}
	defer flock.Release(f) //nolint:errcheck // nothing was written to it
	claim, err := s.unmountEverywhere(f)
	if err != nil {
		return err
	}
	err = os.Remove(s.Image)
	if claim != nil {
		err = errors.Join(err, claim.Close())
	}
	if err != nil {
		return err
	}
	if err := s.removeStale(); err != nil {
		return err
	}
	// The directory stays if someone has put something into it.
	if err := os.Remove(s.Root); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return syncdir.Sync(filepath.Dir(s.Image))
}

// unmountEverywhere unmounts the image, which is locked, and claims its device (see claimDevice). An unmount also ends
// the mounts that have spread from this one to other mount namespaces. So the users that are left are known after it
// alone, and then the image is mounted again. Files that have come into the directory meanwhile are hidden.
func (s Store) unmountEverywhere(image *os.File) (claim *os.File, err error) {
	state, err := s.state(image)
	if err != nil {
		return nil, err
	}
	if state == Mounted {
		if err := s.checkNotElsewhere(image); err != nil {
			return nil, err
		}
		err := unix.Unmount(s.Root, 0)
		if errors.Is(err, unix.EBUSY) {
			err = fault.New(fault.ErrInUse, "fuser -vm %s shows by whom: %w", s.Root, err)
		}
		if err != nil {
			return nil, fault.Wrap("unmount embedded store", s.Root, err)
		}
	}
	claim, err = s.claimDevice(image)
	if err != nil && state == Mounted {
		err = errors.Join(err, s.mountOnRoot())
	}
	return claim, fault.Wrap("remove image", s.Image, err)
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

// missing says what to install where a program of btrfs-progs is not found.
func missing(name string) error {
	return fault.New(errdefs.ErrNotImplemented, "the program %s is missing: install the package btrfs-progs", name)
}
