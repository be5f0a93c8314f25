package treecopy

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/changelist"
	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/treeat"
)

func copyChanges(ctx context.Context, dst, src *os.File, changes []archive.Change, opts Options) (Report, error) {
	c := changeCopier{copier: newCopier(ctx, dst, src, opts, IsContent)}
	c.gone = c.remove
	return c.done("copy changes", c.run(changes))
}

func overlay(ctx context.Context, dst, src *os.File, changes []archive.Change, opts Options) (Report, error) {
	c := changeCopier{copier: newCopier(ctx, dst, src, opts, OverlayMarks.IsContent), makeParents: true}
	c.gone = func(dir int, name string) error {
		c.report.Removed++
		if err := unix.Mknodat(dir, name, unix.S_IFCHR, 0); err != nil {
			return fmt.Errorf("make whiteout: %w", err)
		}
		return nil
	}
	return c.done("write changes as an overlay", c.run(changes))
}

// changeCopier makes the changes of a list in dst.
type changeCopier struct {
	*copier
	gone        func(dir int, name string) error // makes a Delete
	makeParents bool                             // directories that are not listed are made, too
	late        []string                         // directories whose times are set at the end
}

func (c *changeCopier) run(changes []archive.Change) error {
	changes, err := changelist.Sorted(changes)
	if err != nil {
		return err
	}
	for i := range changes {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if changes[i].Path == "/" {
			continue
		}
		if err := c.change(&changes[i]); err != nil {
			return fmt.Errorf("%s: %w", treeat.Quote(changes[i].Path), err)
		}
	}
	for _, dir := range c.late {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.dirTimes(dir); err != nil {
			return fmt.Errorf("%s: %w", treeat.Quote(dir), err)
		}
	}
	return c.root()
}

func (c *changeCopier) change(change *archive.Change) error {
	parent, name := split(change.Path)
	dir, err := c.parent(parent)
	if change.Kind == archive.ChangeDelete {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		return c.gone(dir, name)
	}
	if err != nil {
		return err
	}
	return c.copy(change.Path, dir)
}

// parent returns a descriptor of a directory in dst. It is valid until the next call.
func (c *changeCopier) parent(dir string) (int, error) {
	fd, err := c.dst.Dir(dir)
	if !c.makeParents || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	outer, _ := split(dir)
	if fd, err = c.parent(outer); err != nil {
		return -1, err
	}
	if err := c.copy(dir, fd); err != nil {
		return -1, fmt.Errorf("directory %s: %w", treeat.Quote(dir), err)
	}
	return c.dst.Dir(dir)
}

// copy makes a path in dst as it is in src. dstDir is its directory in dst.
func (c *changeCopier) copy(path string, dstDir int) error {
	parent, name := split(path)
	srcDir, err := c.src.Dir(parent)
	if err != nil {
		return err
	}
	e := entry{srcDir: srcDir, dstDir: dstDir, path: path, name: name}
	if err := treeat.Lstat(srcDir, name, &e.st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if e.kind() != unix.S_IFDIR {
		return c.put(&e, -1)
	}
	c.late = append(c.late, path)
	return c.putDir(&e)
}

// dirTimes sets the times of a directory, when nothing more is made in it.
func (c *changeCopier) dirTimes(path string) error {
	parent, name := split(path)
	srcDir, err := c.src.Dir(parent)
	if err != nil {
		return err
	}
	dstDir, err := c.dst.Dir(parent)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := treeat.Lstat(srcDir, name, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	return filemeta.SetTimes(treeat.File{Dir: dstDir, Name: name, FD: -1}, &st)
}
