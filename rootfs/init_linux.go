package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// DefaultInitializer returns the files that InitRootFS gives to containers:
//
//   - directories, on which a runtime mounts /dev, /dev/pts, /dev/shm, /proc and /sys
//   - files, on which it mounts /dev/console, /etc/hostname, /etc/hosts and /etc/resolv.conf
//   - the symbolic link /etc/mtab
//
// Files of these names in an image stay as they are, symbolic links too. A file in the place of a directory is
// replaced, unless it leads to a directory. New files belong to the owner of the root. Links are followed as inside
// the container, so that nothing outside the root is touched.
func DefaultInitializer() Initializer {
	return Initializer{Name: "linux-init", Init: initLinux}
}

// The files that initLinux makes, in this order.
var (
	initDirs  = []string{"dev", "dev/pts", "dev/shm", "proc", "sys", "etc"}
	initFiles = []string{"dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf"}
	initLinks = map[string]string{"etc/mtab": "/proc/mounts"}
)

func initLinux(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("owner of %s: %w", dir, errors.ErrUnsupported)
	}
	t := tree{root, int(owner.Uid), int(owner.Gid)}
	for _, name := range initDirs {
		if _, err := t.directory(name); err != nil {
			return err
		}
	}
	for _, name := range initFiles {
		if err := t.file(name); err != nil {
			return err
		}
	}
	for name, target := range initLinks {
		if err := t.symlink(target, name); err != nil {
			return err
		}
	}
	return nil
}

// tree is a root filesystem that something is added to.
type tree struct {
	*os.Root
	uid, gid int // the owner of new files
}

// directory makes sure that there is a directory, all those above it included, and returns its name without links.
func (t tree) directory(name string) (string, error) {
	dir := "."
	for component := range strings.SplitSeq(name, "/") {
		next := path.Join(dir, component)
		found, err := t.follow(next)
		switch {
		case err == nil:
			dir = found
			continue
		case !errors.Is(err, errNoDirectory):
			return "", err
		}
		if err := t.replaceByDirectory(next); err != nil {
			return "", err
		}
		dir = next
	}
	return dir, nil
}

func (t tree) replaceByDirectory(name string) error {
	if err := t.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := t.Mkdir(name, 0o755); err != nil {
		return err
	}
	// Whatever the umask is: users of the container need to get there.
	return errors.Join(t.Chmod(name, 0o755), t.Lchown(name, t.uid, t.gid))
}

// file makes an empty file of that name, unless the name exists.
func (t tree) file(name string) error {
	name, err := t.absent(name)
	if err != nil || name == "" {
		return err
	}
	f, err := t.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o644), f.Chown(t.uid, t.gid), f.Close())
}

// symlink makes a link of that name, unless the name exists.
func (t tree) symlink(target, name string) error {
	name, err := t.absent(name)
	if err != nil || name == "" {
		return err
	}
	return errors.Join(t.Symlink(target, name), t.Lchown(name, t.uid, t.gid))
}

// absent returns the name, with links resolved, of a file that does not exist, and "" if it exists. The directory has
// been made.
func (t tree) absent(name string) (string, error) {
	dir, err := t.directory(path.Dir(name))
	if err != nil {
		return "", err
	}
	name = path.Join(dir, path.Base(name))
	_, err = t.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return name, nil
	}
	return "", err
}

// errNoDirectory says that a name is not that of a directory, and is no link to one.
var errNoDirectory = errors.New("no directory")

// maxLinks is how many symbolic links Linux follows in one name.
const maxLinks = 40

// follow returns the name without links of the directory that a name leads to if the tree is the root of a process.
// os.Root by itself takes absolute links for an attempt to escape. errNoDirectory: it leads to none.
func (t tree) follow(name string) (string, error) {
	dir, rest, links := ".", name, 0
	for rest != "" {
		var component string
		component, rest, _ = strings.Cut(rest, "/")
		next := path.Join(dir, component) // for ".." the directory above
		if dir == "." && next == ".." {
			next = "."
		}
		info, err := t.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return "", errNoDirectory
		}
		if err != nil {
			return "", err
		}
		switch info.Mode().Type() {
		case fs.ModeDir:
			dir = next
		case fs.ModeSymlink:
			if links++; links > maxLinks {
				return "", errNoDirectory
			}
			target, err := t.Readlink(next)
			if err != nil {
				return "", err
			}
			if path.IsAbs(target) {
				dir = "."
			}
			rest = target + "/" + rest
		default:
			return "", errNoDirectory
		}
	}
	return dir, nil
}
