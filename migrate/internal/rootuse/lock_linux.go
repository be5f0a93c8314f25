package rootuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Locked returns fault.ErrInUse if a process holds a lock of fcntl(2) on a file of the root, of either kind. The file may be
// missing.
func Locked(root *rootdir.Dir, name string) error {
	file, err := root.OpenFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = os.NewSyscallError("fcntl", unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock))
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("look for locks of %s: %w", file.Name(), err)
	}
	switch {
	case lock.Type == unix.F_UNLCK:
		return nil
	case lock.Pid > 0:
		return fault.New(fault.ErrInUse, "%s is locked by %s", file.Name(), mounttable.DescribeProcess(int(lock.Pid)))
	}
	return fault.New(fault.ErrInUse, "%s is locked", file.Name())
}

// Flocked returns fault.ErrInUse if a process holds the lock of flock(2) on a file of the root, as bolt does. For a moment, it
// has the lock itself. The file may be missing.
func Flocked(root *rootdir.Dir, name string) error {
	file, err := root.OpenFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	err = unix.Fstat(int(file.Fd()), &stat)
	free := false
	if err == nil {
		free, err = flock.TryShared(file)
	}
	if err := errors.Join(err, flock.Release(file)); err != nil || free {
		return err
	}
	by := "a process that cannot be seen from here"
	if holders := mounttable.Holders(mounttable.File{Device: stat.Dev, Inode: stat.Ino}); len(holders) > 0 {
		by = mounttable.DescribeProcess(holders[0])
	}
	return fault.New(fault.ErrInUse, "%s has %s locked: stop the engine", by, file.Name())
}
