package rootuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Locks are locks of files in a root, which keep programs out until Release. The zero value has none. Methods are safe for
// concurrent use.
type Locks struct {
	mu    sync.Mutex
	files map[string]*os.File
}

// Lock locks a file by fcntl(2), together with others who read. Returns fault.ErrInUse if another process has a lock of
// it, of either kind. The file may be missing.
func (l *Locks) Lock(root *rootdir.Dir, name string) error {
	return l.hold(root, name, func(file *os.File) error {
		err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return os.NewSyscallError("fcntl", err)
		}
		if other := locked(file); other != nil || err == nil {
			return other
		}
		return fault.New(fault.ErrInUse, "%s is locked", file.Name())
	})
}

// Flock locks a file by flock(2), together with others who read, as bolt does. Returns fault.ErrInUse if another process
// has it locked for writing. The file may be missing.
func (l *Locks) Flock(root *rootdir.Dir, name string) error {
	return l.hold(root, name, func(file *os.File) error {
		free, err := flock.TryShared(file)
		if err != nil || free {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
			return err
		}
		by := "a process that cannot be seen from here"
		if holders := mounttable.Holders(mounttable.File{Device: stat.Dev, Inode: stat.Ino}); len(holders) > 0 {
			by = mounttable.DescribeProcess(holders[0])
		}
		return fault.New(fault.ErrInUse, "%s has %s locked: stop the engine", by, file.Name())
	})
}

// hold opens a file, locks it, and keeps it open. A file that is open already is locked again.
func (l *Locks) hold(root *rootdir.Dir, name string, lock func(*os.File) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if file := l.files[name]; file != nil {
		return lock(file)
	}
	file, err := root.OpenFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := lock(file); err != nil {
		return errors.Join(err, flock.Release(file))
	}
	if l.files == nil {
		l.files = make(map[string]*os.File)
	}
	l.files[name] = file
	return nil
}

// Release gives all locks back.
func (l *Locks) Release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, file := range l.files {
		errs = append(errs, flock.Release(file))
	}
	l.files = nil
	return errors.Join(errs...)
}

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
	return errors.Join(locked(file), file.Close())
}

// locked returns fault.ErrInUse if a process holds a lock of fcntl(2) on the file. A lock by this open file does not count.
func locked(file *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return fmt.Errorf("look for locks of %s: %w", file.Name(), os.NewSyscallError("fcntl", err))
	}
	switch {
	case lock.Type == unix.F_UNLCK:
		return nil
	case lock.Pid > 0:
		return fault.New(fault.ErrInUse, "%s is locked by %s", file.Name(), mounttable.DescribeProcess(int(lock.Pid)))
	}
	return fault.New(fault.ErrInUse, "%s is locked", file.Name())
}
