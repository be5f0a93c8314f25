package sharedroot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// strip takes overlayfs's attributes away from a file. gone: they say that the file, which is empty, is a whiteout.
func (f *folder) strip(file treeat.File) (gone bool, err error) {
	list, err := f.attrs.of(file)
	if err != nil {
		return false, err
	}
	for raw := range bytes.SplitSeq(list, []byte{0}) {
		mark, is := strings.CutPrefix(string(raw), overlaymark.Space)
		if !is {
			continue
		}
		switch mark {
		case "whiteout":
			var st unix.Stat_t
			if err := treeat.Lstat(file.Dir, file.Name, &st); err != nil {
				return false, fmt.Errorf("stat: %w", err)
			}
			if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
				return true, nil
			}
		case "redirect", "metacopy":
			return false, overlaymark.ErrRedirected
		}
		err := f.do("remove extended attribute", func() error { return file.RemoveXattr(string(raw)) }, file)
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return false, err
		}
	}
	return false, nil
}

// attrNames lists the extended attributes of one file after the other.
type attrNames struct {
	buf []byte
}

// of lists the names, each with a NUL after it. They are valid until the next call.
func (a *attrNames) of(file treeat.File) ([]byte, error) {
	if a.buf == nil {
		a.buf = make([]byte, 512) // the kernel allocates as much for each call
	}
	n, err := file.ListXattr(a.buf)
	if errors.Is(err, unix.ERANGE) && len(a.buf) < treeat.MaxXattrNames {
		a.buf = make([]byte, treeat.MaxXattrNames)
		n, err = file.ListXattr(a.buf)
	}
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	return a.buf[:n], nil
}

// stripTree takes overlayfs's attributes and whiteouts away from a directory and all that is below it.
func (f *folder) stripTree(e *entry) error {
	s := stripper{folder: f, buf: make([]byte, 32<<10)}
	return eachDir(e.upper, e.name, func(dir int) ([]string, error) {
		err := s.dir(dir)
		return s.subdirs, err
	})
}

// eachDir calls a function for a directory and all that are below it. The function returns the names of those in it.
func eachDir(dir int, name string, call func(dir int) (subdirs []string, err error)) error {
	top, err := treeat.OpenDir(dir, name)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(top)
	dirs := treeat.DirStack{Root: top}
	defer dirs.Close()
	for todo := []string{""}; len(todo) > 0; {
		path := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		dir, err := dirs.Dir(path)
		var subdirs []string
		if err == nil {
			subdirs, err = call(dir)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", treeat.Quote(path), err)
		}
		for _, name := range subdirs {
			todo = append(todo, path+"/"+name)
		}
	}
	return nil
}

// eachEntry calls a function for each name in a directory and in those below it. A directory comes before the names in it.
func eachEntry(dir int, name string, visit func(e *entry) error) error {
	buf := make([]byte, 32<<10)
	return eachDir(dir, name, func(dir int) (subdirs []string, err error) {
		fd, err := treeat.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("open directory: %w", err)
		}
		defer unix.Close(fd)
		for names := []treeat.Dirent(nil); ; {
			if names, err = treeat.ReadDir(fd, buf, names); err != nil || len(names) == 0 {
				return subdirs, err
			}
			for _, d := range names {
				e := entry{upper: dir, name: d.Name, kind: d.Type}
				if err = e.know(); err == nil {
					err = visit(&e)
				}
				if err != nil {
					return nil, fmt.Errorf("%s: %w", treeat.Quote(d.Name), err)
				}
				if e.kind == unix.DT_DIR {
					subdirs = append(subdirs, d.Name)
				}
			}
		}
	})
}

// stripper strips one directory after the other.
type stripper struct {
	*folder
	buf     []byte // for directory entries
	names   []treeat.Dirent
	subdirs []string // in the last directory
}

// dir strips a directory and the files in it.
func (s *stripper) dir(dir int) error {
	for again := true; again; {
		var err error
		if again, err = s.files(dir); err != nil {
			return err
		}
	}
	here := treeat.File{Dir: dir, Name: ".", FD: -1}
	if _, err := s.strip(here); err != nil {
		return err
	}
	times, changed, err := readNote(here)
	if err != nil || !changed {
		return err
	}
	err = s.do("directory", func() error {
		return filemeta.SetTimes(here, &unix.Stat_t{Atim: times[0], Mtim: times[1]})
	})
	if err == nil {
		err = s.do("directory", func() error { return removeNote(here) })
	}
	return err
}

// files strips the files of a directory. again: it has removed a name, so reading may have missed another.
func (s *stripper) files(dir int) (again bool, err error) {
	fd, err := treeat.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd)
	s.subdirs = s.subdirs[:0]
	for {
		if s.names, err = treeat.ReadDir(fd, s.buf, s.names); err != nil {
			return false, fmt.Errorf("read directory: %w", err)
		}
		if len(s.names) == 0 {
			return again, nil
		}
		for _, d := range s.names {
			gone, err := s.file(&entry{upper: dir, name: d.Name, kind: d.Type})
			if err != nil {
				return false, fmt.Errorf("%s: %w", treeat.Quote(d.Name), err)
			}
			again = again || gone
		}
	}
}

// file strips a name, unless it is that of a directory, and removes a whiteout.
func (s *stripper) file(e *entry) (gone bool, err error) {
	if err := e.know(); err != nil {
		return false, err
	}
	if e.kind == unix.DT_DIR {
		s.subdirs = append(s.subdirs, e.name)
		return false, nil
	}
	if gone, err = e.isWhiteout(); err == nil && !gone {
		gone, err = s.strip(e.source())
	}
	if err != nil || !gone {
		return false, err
	}
	return true, s.removeWhiteout(e)
}

// removeWhiteout removes a whiteout that hides nothing, and notes the times of its directory before.
func (s *stripper) removeWhiteout(e *entry) error {
	here := treeat.File{Dir: e.upper, Name: ".", FD: -1}
	_, noted, err := readNote(here)
	if err != nil {
		return err
	}
	if !noted {
		var st unix.Stat_t
		if err := treeat.Lstat(here.Dir, here.Name, &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		if err := s.do("directory", func() error { return writeNote(here, &st) }); err != nil {
			return err
		}
	}
	return s.do("remove whiteout", func() error { return unix.Unlinkat(e.upper, e.name, 0) })
}
