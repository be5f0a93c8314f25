package treecopy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/treeat"
)

// copier copies files of one tree to the same names in another.
type copier struct {
	ctx  context.Context
	opts Options

	src, dst treeat.DirStack
	links    links
	meta     filemeta.Copier
	noRange  bool   // copy_file_range does not work between these trees
	buf      []byte // for data that is read and written

	report Report
}

// newCopier makes a copier. isContent tells the extended attributes that are copied.
func newCopier(ctx context.Context, dst, src *os.File, opts Options, isContent func(name string) bool) *copier {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	root := int(dst.Fd())
	return &copier{
		ctx: ctx, opts: opts,
		src: treeat.DirStack{Root: int(src.Fd())}, dst: treeat.DirStack{Root: root},
		links: links{dirs: treeat.DirStack{Root: root}, made: make(map[inode]*madeName)},
		meta:  filemeta.Copier{IsContent: isContent},
	}
}

// done closes the copier's descriptors, and returns the report, and the error with the operation's name.
func (c *copier) done(operation string, err error) (Report, error) {
	c.src.Close()
	c.dst.Close()
	c.links.dirs.Close()
	if err != nil {
		return c.report, fmt.Errorf("%s: %w", operation, err)
	}
	c.meta.Log(c.opts.Logger, "treecopy")
	return c.report, nil
}

// split cuts an absolute path into that of its directory, "" for the root, and a name in it.
func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:i], path[i+1:]
}

// entry is a file of src, and the descriptors of the directories that hold it there and in dst.
type entry struct {
	srcDir, dstDir int
	path, name     string // absolute in both trees, and its last component
	st             unix.Stat_t
}

func (e *entry) kind() uint32 { return e.st.Mode & unix.S_IFMT }

func (e *entry) source() treeat.File { return treeat.File{Dir: e.srcDir, Name: e.name, FD: -1} }

func (e *entry) target() treeat.File { return treeat.File{Dir: e.dstDir, Name: e.name, FD: -1} }

// remove removes a name in dst, and all that is below it.
func (c *copier) remove(dir int, name string) error {
	var st unix.Stat_t
	err := treeat.Lstat(dir, name, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	c.report.Removed++
	return treeat.RemoveTree(c.ctx, dir, name)
}

// putDir gives the directory of an entry its attributes, except times, and makes it if need be. It replaces a file that
// is no directory.
func (c *copier) putDir(e *entry) error {
	var st unix.Stat_t
	err := treeat.Lstat(e.dstDir, e.name, &st)
	isThere := err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	if err == nil && !isThere {
		if err = unix.Unlinkat(e.dstDir, e.name, 0); err == nil {
			err = unix.ENOENT
		}
	}
	if errors.Is(err, unix.ENOENT) {
		err = unix.Mkdirat(e.dstDir, e.name, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	c.report.Files++
	return c.meta.Set(e.target(), e.source(), &e.st)
}

// put makes the file of an entry, which is no directory, in place of anything that has its name. data is the file that
// has its content, or -1: the file itself.
func (c *copier) put(e *entry, data int) error {
	if err := treeat.RemoveTree(c.ctx, e.dstDir, e.name); err != nil {
		return err
	}
	c.report.Files++
	if e.st.Nlink > 1 {
		if linked, err := c.links.link(e); linked || err != nil {
			return err
		}
	}
	if err := c.make(e, data); err != nil {
		return err
	}
	if e.st.Nlink > 1 {
		c.links.add(e)
	}
	return nil
}

// make makes the file of an entry, whose name is free.
func (c *copier) make(e *entry, data int) error {
	switch e.kind() {
	case unix.S_IFREG:
		return c.makeFile(e, data)
	case unix.S_IFLNK:
		to, err := treeat.Readlink(e.srcDir, e.name)
		if err != nil {
			return fmt.Errorf("read symbolic link: %w", err)
		}
		if err := unix.Symlinkat(to, e.dstDir, e.name); err != nil {
			return fmt.Errorf("make symbolic link: %w", err)
		}
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		if err := unix.Mknodat(e.dstDir, e.name, e.kind()|0o600, int(e.st.Rdev)); err != nil {
			return fmt.Errorf("make device, fifo or socket: %w", err)
		}
	default:
		return fmt.Errorf("a file of unknown type %#o: %w", e.st.Mode, unix.EINVAL)
	}
	if err := c.meta.Set(e.target(), e.source(), &e.st); err != nil {
		return err
	}
	return filemeta.SetTimes(e.target(), &e.st)
}

// makeFile makes a regular file.
func (c *copier) makeFile(e *entry, data int) error {
	in, err := openFile(e.srcDir, e.name)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(in)
	was := inodeOf(&e.st)
	if err := unix.Fstat(in, &e.st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if e.kind() != unix.S_IFREG || inodeOf(&e.st) != was {
		return fmt.Errorf("it was replaced meanwhile: %w", unix.ESTALE)
	}
	if data < 0 {
		data = in
	}
	out, err := treeat.Open(e.dstDir, e.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	err = c.fill(out, data, in, e)
	if cerr := unix.Close(out); err == nil && cerr != nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	return err
}

func (c *copier) fill(out, data, in int, e *entry) error {
	if err := c.data(out, data, e.st.Size); err != nil {
		return err
	}
	target := treeat.File{Dir: e.dstDir, Name: e.name, FD: out}
	if err := c.meta.Set(target, treeat.File{Dir: e.srcDir, Name: e.name, FD: in}, &e.st); err != nil {
		return err
	}
	return filemeta.SetTimes(target, &e.st)
}

// openFile opens a regular file to read it. Should the name be something else by now, this neither follows nor blocks.
func openFile(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := treeat.Open(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // of another owner
		fd, err = treeat.Open(dir, name, flags, 0)
	}
	return fd, err
}

// root gives the root of dst the attributes of that of src, times included.
func (c *copier) root() error {
	e := entry{srcDir: c.src.Root, dstDir: c.dst.Root, name: "."}
	err := treeat.Lstat(e.srcDir, e.name, &e.st)
	if err == nil {
		err = c.meta.Set(e.target(), e.source(), &e.st)
	}
	if err == nil {
		err = filemeta.SetTimes(e.target(), &e.st)
	}
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return nil
}
