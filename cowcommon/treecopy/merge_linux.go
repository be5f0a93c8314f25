package treecopy

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/treeat"
)

func merge(ctx context.Context, dst, src *os.File, form Marks, opts Options) (Report, error) {
	m := merger{copier: newCopier(ctx, dst, src, opts, form.IsContent), form: form, buf: make([]byte, 32<<10)}
	return m.done("merge changes", m.run())
}

// merger walks src, each directory after the other files of its parent. It remembers the directories that it is in,
// with those in them that are still to come.
type merger struct {
	*copier
	form  Marks
	buf   []byte // for directory entries
	names []treeat.Dirent

	path  []byte // of the directory that it is in, "" for the root
	stack []level
}

// level is a directory that a merger is in.
type level struct {
	end  int // of its path in merger.path
	st   unix.Stat_t
	todo []string // directories in it
}

func (m *merger) run() error {
	if m.form < OverlayMarks || m.form > AufsMarks {
		return fault.New(errdefs.ErrInvalidArgument, "marks %d", m.form)
	}
	if err := m.begin(); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for len(m.stack) > 0 {
		top := &m.stack[len(m.stack)-1]
		m.path = m.path[:top.end]
		var err error
		if n := len(top.todo); n > 0 {
			name := top.todo[n-1]
			top.todo = top.todo[:n-1]
			err = m.enter(name)
		} else {
			err = m.leave()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", treeat.Quote(string(m.path)), err)
		}
	}
	return m.root()
}

// begin merges the files of the root.
func (m *merger) begin() error {
	hides, err := m.form.opaque(&entry{srcDir: m.src.Root, name: "."})
	if err != nil {
		return err
	}
	if hides {
		if err := m.clear(m.dst.Root); err != nil {
			return err
		}
	}
	return m.push(unix.Stat_t{})
}

// clear removes all names of a directory in dst.
func (m *merger) clear(dir int) error {
	for {
		// Reading a directory while removing from it may miss names.
		fd, err := treeat.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("open directory: %w", err)
		}
		m.names, err = treeat.ReadDir(fd, m.buf, m.names)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		if len(m.names) == 0 {
			return nil
		}
		for _, e := range m.names {
			if err := m.remove(dir, e.Name); err != nil {
				return err
			}
		}
	}
}

// enter makes a directory of the directory that the merger is in, and merges its files.
func (m *merger) enter(name string) error {
	parent := string(m.path)
	m.path = append(append(m.path, '/'), name...)
	srcDir, err := m.src.Dir(parent)
	if err != nil {
		return err
	}
	dstDir, err := m.dst.Dir(parent)
	if err != nil {
		return err
	}
	e := entry{srcDir: srcDir, dstDir: dstDir, name: name}
	if err := treeat.Lstat(srcDir, name, &e.st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	hides, err := m.form.opaque(&e)
	if err != nil {
		return err
	}
	if hides {
		if err := m.remove(dstDir, name); err != nil {
			return err
		}
	}
	if err := m.putDir(&e); err != nil {
		return err
	}
	return m.push(e.st)
}

// push merges the files of the directory at m.path but the directories in it, which are to come.
func (m *merger) push(st unix.Stat_t) error {
	path := string(m.path)
	srcDir, err := m.src.Dir(path)
	if err != nil {
		return err
	}
	dstDir, err := m.dst.Dir(path)
	if err != nil {
		return err
	}
	fd, err := treeat.Open(srcDir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd)
	l := level{end: len(m.path), st: st}
	for {
		if m.names, err = treeat.ReadDir(fd, m.buf, m.names); err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		if len(m.names) == 0 {
			m.stack = append(m.stack, l)
			return nil
		}
		for _, d := range m.names {
			e := entry{srcDir: srcDir, dstDir: dstDir, path: path + "/" + d.Name, name: d.Name}
			isDir, err := m.file(&e)
			if err != nil {
				return fmt.Errorf("%s: %w", treeat.Quote(d.Name), err)
			}
			if isDir {
				l.todo = append(l.todo, d.Name)
			}
		}
	}
}

// file merges a name, unless it is that of a directory.
func (m *merger) file(e *entry) (isDir bool, err error) {
	if err := m.ctx.Err(); err != nil {
		return false, err
	}
	if err := treeat.Lstat(e.srcDir, e.name, &e.st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	means, err := m.form.mean(e)
	switch {
	case err != nil || means.skip:
		return false, err
	case means.whiteout:
		return false, m.remove(e.dstDir, means.gone)
	case means.metacopy:
		return false, m.putMetacopy(e)
	case e.kind() == unix.S_IFDIR:
		return true, nil
	}
	return false, m.put(e, -1)
}

// putMetacopy makes a file with the attributes of an entry, and with the data that dst has under its name.
func (m *merger) putMetacopy(e *entry) error {
	data, err := openFile(e.dstDir, e.name)
	if err != nil {
		return fmt.Errorf("open its data: %w", err)
	}
	defer unix.Close(data)
	var st unix.Stat_t
	if err := unix.Fstat(data, &st); err != nil {
		return fmt.Errorf("stat its data: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != e.st.Size {
		return fault.New(errdefs.ErrDataLoss, "the layer below has no such data for it")
	}
	return m.put(e, data)
}

// leave sets the times of the directory that the merger is in, and goes back up.
func (m *merger) leave() error {
	l := m.stack[len(m.stack)-1]
	m.stack = m.stack[:len(m.stack)-1]
	if len(m.stack) == 0 {
		return nil // the root comes last
	}
	parent, name := split(string(m.path))
	dir, err := m.dst.Dir(parent)
	if err != nil {
		return err
	}
	return filemeta.SetTimes(treeat.File{Dir: dir, Name: name, FD: -1}, &l.st)
}
