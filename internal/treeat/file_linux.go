package treeat

import (
	"golang.org/x/sys/unix"
)

// File is a file whose attributes are read or set: a name in a directory, and a descriptor if it is open.
type File struct {
	Dir  int
	Name string
	FD   int // -1: not open
}

// Chown sets the owner and group.
func (f File) Chown(uid, gid int) error {
	if f.FD >= 0 {
		return unix.Fchown(f.FD, uid, gid)
	}
	return unix.Fchownat(f.Dir, f.Name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

// Chmod sets the mode of a file that is not a symbolic link.
func (f File) Chmod(mode uint32) error {
	if f.FD >= 0 {
		return unix.Fchmod(f.FD, mode)
	}
	return Chmod(f.Dir, f.Name, mode)
}

// SetTimes sets the times of access and modification.
func (f File) SetTimes(times *[2]unix.Timespec) error {
	if f.FD >= 0 {
		return Futimens(f.FD, times)
	}
	return Utimens(f.Dir, f.Name, times)
}

// SetXattr sets an extended attribute.
func (f File) SetXattr(name string, value []byte) error {
	if f.FD >= 0 {
		return unix.Fsetxattr(f.FD, name, value, 0)
	}
	return unix.Lsetxattr(ProcPath(f.Dir, f.Name), name, value, 0)
}

// RemoveXattr removes an extended attribute.
func (f File) RemoveXattr(name string) error {
	if f.FD >= 0 {
		return unix.Fremovexattr(f.FD, name)
	}
	return unix.Lremovexattr(ProcPath(f.Dir, f.Name), name)
}

// ListXattr lists the names of the extended attributes, each with a NUL after it.
func (f File) ListXattr(buf []byte) (int, error) {
	if f.FD >= 0 {
		return unix.Flistxattr(f.FD, buf)
	}
	return unix.Llistxattr(ProcPath(f.Dir, f.Name), buf)
}

// GetXattr reads an extended attribute.
func (f File) GetXattr(name string, buf []byte) (int, error) {
	if f.FD >= 0 {
		return unix.Fgetxattr(f.FD, name, buf)
	}
	return unix.Lgetxattr(ProcPath(f.Dir, f.Name), name, buf)
}
