package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

// receiveTree is a directory tree that is changed by paths relative to its root. No path leads out of it. openat2 finds
// the directory that holds the last name, and crosses neither symbolic links nor mounts. The last name is never
// followed either.
//
// receiveTree keeps directories and files open from one call to the next, since a stream does many things in a row at
// the same place. It is for paths of a send stream, which are relative and hold no "." and "..".
type receiveTree struct {
	root int
	dirs [2]openDir // the last two used, the most recent first
	file openFile

	inherited   []string // attributes that new files in root inherit
	inheritedOK bool     // inherited is known
}

// openDir is a directory kept open with O_PATH.
type openDir struct {
	path []byte
	fd   int // -1: none
}

// openFile is a regular file kept open for writing.
type openFile struct {
	path []byte
	fd   int // -1: none
}

func newReceiveTree(root int) *receiveTree {
	return &receiveTree{root: root, dirs: [2]openDir{{fd: -1}, {fd: -1}}, file: openFile{fd: -1}}
}

func (t *receiveTree) close() {
	t.closeFile()
	for i := range t.dirs {
		t.dirs[i].close()
	}
}

func (d *openDir) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// closeFile closes the file that is kept open. The sync at the end reports errors of writing back.
func (t *receiveTree) closeFile() {
	if t.file.fd >= 0 {
		unix.Close(t.file.fd)
		t.file.fd = -1
	}
}

// pathError wraps the error of an operation on a path, which it quotes; nil stays nil.
func pathError(op string, path []byte, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: treeat.Quote(string(path)), Err: err}
}

// at returns the directory that holds the last name of a path, and that name. The descriptor is valid until the second
// call of at after this call. For the root, at returns the root itself and ".".
func (t *receiveTree) at(path []byte) (dir int, name string, err error) {
	if len(path) == 0 {
		return t.root, ".", nil
	}
	i := bytes.LastIndexByte(path, '/')
	name = string(path[i+1:])
	if i < 0 {
		return t.root, name, nil
	}
	parent := path[:i]
	if !t.dirs[0].is(parent) {
		t.dirs[0], t.dirs[1] = t.dirs[1], t.dirs[0]
	}
	if !t.dirs[0].is(parent) {
		t.dirs[0].close()
		if err := t.dirs[0].open(t.root, parent); err != nil {
			return -1, "", pathError("open", parent, err)
		}
	}
	return t.dirs[0].fd, name, nil
}

func (d *openDir) is(path []byte) bool { return d.fd >= 0 && bytes.Equal(d.path, path) }

func (d *openDir) open(root int, path []byte) error {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	err := eintr.Ignore(func() (err error) {
		d.fd, err = unix.Openat2(root, string(path), how)
		return err
	})
	if err != nil {
		d.fd = -1
		return err
	}
	d.path = append(d.path[:0], path...)
	return nil
}

// moved closes the open directories whose paths lead through path, because the name at path was changed.
func (t *receiveTree) moved(path []byte) {
	for i := range t.dirs {
		d := &t.dirs[i]
		if d.fd >= 0 && bytes.HasPrefix(d.path, path) && (len(d.path) == len(path) || d.path[len(path)] == '/') {
			d.close()
		}
	}
}

// openRegular opens a regular file. It opens no other kind of file: opening a device may already have an effect on it.
func (t *receiveTree) openRegular(path []byte, flags int) (int, error) {
	dir, name, err := t.at(path)
	if err != nil {
		return -1, err
	}
	if err := requireRegular(dir, name, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, pathError("open", path, err)
	}
	var fd int
	err = eintr.Ignore(func() (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, pathError("open", path, err)
	}
	return fd, nil
}

var errNotRegular = errors.New("not a regular file")

func requireRegular(dir int, name string, flags int) error {
	var stat unix.Stat_t
	if err := unix.Fstatat(dir, name, &stat, flags); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return errNotRegular
	}
	return nil
}

// writable opens a regular file for writing. It keeps the file open until the next call for another file, or closeFile.
func (t *receiveTree) writable(path []byte) (int, error) {
	if t.file.fd >= 0 && bytes.Equal(t.file.path, path) {
		return t.file.fd, nil
	}
	t.closeFile()
	fd, err := t.openRegular(path, unix.O_WRONLY)
	if err != nil {
		return -1, err
	}
	t.file.fd, t.file.path = fd, append(t.file.path[:0], path...)
	return fd, nil
}

// New files belong to root alone until the stream sets their owners and modes.
const (
	newFileMode = 0o600
	newDirMode  = 0o700
)

func (t *receiveTree) makeFile(path []byte) error {
	return t.makeNode(path, unix.S_IFREG, 0)
}

func (t *receiveTree) makeNode(path []byte, kind uint32, dev int) error {
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	if err := unix.Mknodat(dir, name, kind|newFileMode, dev); err != nil {
		return pathError("mknod", path, err)
	}
	return t.dropInherited(path, dir, name, kind)
}

func (t *receiveTree) makeDir(path []byte) error {
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(dir, name, newDirMode); err != nil {
		return pathError("mkdir", path, err)
	}
	return t.dropInherited(path, dir, name, unix.S_IFDIR)
}

func (t *receiveTree) symlink(path, target []byte) error {
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	return pathError("symlink", path, unix.Symlinkat(string(target), dir, name))
}

// Attributes of a directory that have an effect on new files in it. A stream makes every new file in the root, whose
// attributes it has set before, and moves it into place.
const (
	xattrDefaultACL  = "system.posix_acl_default"
	xattrAccessACL   = "system.posix_acl_access"
	xattrCompression = "btrfs.compression"
)

// dropInherited removes the attributes that a new file has inherited from its directory.
func (t *receiveTree) dropInherited(path []byte, dir int, name string, kind uint32) error {
	inherited, err := t.inheritedFrom(dir)
	if err != nil {
		return pathError("getxattr", path, err)
	}
	for _, attribute := range inherited {
		if attribute == xattrDefaultACL && kind != unix.S_IFDIR ||
			attribute == xattrCompression && kind != unix.S_IFDIR && kind != unix.S_IFREG {
			continue // a file of this kind cannot have the attribute
		}
		err := unix.Lremovexattr(procPath(dir)+"/"+name, attribute)
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return pathError("removexattr", path, err)
		}
	}
	return nil
}

// inheritedFrom returns the attributes that new files in a directory inherit.
func (t *receiveTree) inheritedFrom(dir int) ([]string, error) {
	if dir == t.root && t.inheritedOK {
		return t.inherited, nil
	}
	var inherited []string
	for _, a := range []struct {
		name  string
		gives []string
	}{
		{xattrDefaultACL, []string{xattrAccessACL, xattrDefaultACL}},
		{xattrCompression, []string{xattrCompression}},
	} {
		_, err := unix.Lgetxattr(procPath(dir)+"/.", a.name, nil)
		switch {
		case err == nil:
			inherited = append(inherited, a.gives...)
		case !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP):
			return nil, err
		}
	}
	if dir == t.root {
		t.inherited, t.inheritedOK = inherited, true
	}
	return inherited, nil
}

func (t *receiveTree) rename(path, to []byte) error {
	fromDir, fromName, err := t.at(path)
	if err != nil {
		return err
	}
	toDir, toName, err := t.at(to)
	if err != nil {
		return err
	}
	if err := unix.Renameat(fromDir, fromName, toDir, toName); err != nil {
		return fmt.Errorf("to %s: %w", treeat.Quote(string(to)), pathError("rename", path, err))
	}
	t.moved(path)
	t.moved(to)
	return nil
}

func (t *receiveTree) link(path, target []byte) error {
	targetDir, targetName, err := t.at(target)
	if err != nil {
		return err
	}
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	if err := unix.Linkat(targetDir, targetName, dir, name, 0); err != nil {
		return fmt.Errorf("to %s: %w", treeat.Quote(string(target)), pathError("link", path, err))
	}
	return nil
}

func (t *receiveTree) remove(path []byte, flags int) error {
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, flags); err != nil {
		return pathError("remove", path, err)
	}
	t.moved(path)
	return nil
}

func (t *receiveTree) chown(path []byte, uid, gid int) error {
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	return pathError("chown", path, unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW))
}

// chmod sets the mode of a file. Returns EOPNOTSUPP if the file is a symbolic link.
func (t *receiveTree) chmod(path []byte, mode uint32) error {
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	err = unix.Fchmodat(dir, name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = chmodOpen(dir, name, mode)
	}
	return pathError("chmod", path, err)
}

// chmodOpen is chmod for kernels without fchmodat2, which Linux has from 6.6.
func chmodOpen(dir int, name string, mode uint32) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(procPath(fd), mode)
}

func (t *receiveTree) utimes(path []byte, atimeMtime [2]unix.Timespec) error {
	dir, name, err := t.at(path)
	if err != nil {
		return err
	}
	err = unix.UtimesNanoAt(dir, name, atimeMtime[:], unix.AT_SYMLINK_NOFOLLOW)
	return pathError("utimes", path, err)
}

func (t *receiveTree) setXattr(path, name, value []byte) error {
	file, err := t.proc(path)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		t.inheritedOK = false
	}
	if err := unix.Lsetxattr(file, string(name), value, 0); err != nil {
		return fmt.Errorf("%s: %w", treeat.Quote(string(name)), pathError("setxattr", path, err))
	}
	return nil
}

// removeXattr removes an extended attribute if it is there. Some attributes, such as security.capability, vanish by
// themselves when a file is written to or gets another owner.
func (t *receiveTree) removeXattr(path, name []byte) error {
	file, err := t.proc(path)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		t.inheritedOK = false
	}
	if err := unix.Lremovexattr(file, string(name)); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("%s: %w", treeat.Quote(string(name)), pathError("removexattr", path, err))
	}
	return nil
}

// proc returns a path for the system calls on extended attributes, which take no descriptor of a directory. The last
// name of the path must not be followed.
func (t *receiveTree) proc(path []byte) (string, error) {
	dir, name, err := t.at(path)
	if err != nil {
		return "", err
	}
	return procPath(dir) + "/" + name, nil
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
