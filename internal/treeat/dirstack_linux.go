package treeat

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxStackFDs bounds the descriptors of a DirStack.
const maxStackFDs = 64

// DirStack opens one directory after the other, with descriptors of those on the way kept for the next.
// Each component is opened by itself, without following symbolic links: one in place of a directory is
// ENOTDIR. There is no limit on the length of a path.
type DirStack struct {
	Root   int // not the stack's
	levels []stackLevel
	open   int // levels with a descriptor
}

type stackLevel struct {
	name string
	fd   int // -1: closed, to keep the bound
}

// Close closes all descriptors but that of the root.
func (s *DirStack) Close() { s.cut(0) }

// cut leaves the first n levels.
func (s *DirStack) cut(n int) {
	for i := n; i < len(s.levels); i++ {
		s.shut(i)
	}
	s.levels = s.levels[:n]
}

func (s *DirStack) shut(i int) {
	if s.levels[i].fd >= 0 {
		_ = unix.Close(s.levels[i].fd)
		s.levels[i].fd = -1
		s.open--
	}
}

// Dir returns a descriptor of the directory at an absolute, clean path ("" is the root). It is valid until
// the next call.
func (s *DirStack) Dir(path string) (int, error) {
	depth := 0
	for path != "" {
		name, rest, _ := strings.Cut(path[1:], "/")
		if rest != "" {
			rest = path[1+len(name):]
		}
		if depth == len(s.levels) || s.levels[depth].name != name {
			s.cut(depth)
			s.levels = append(s.levels, stackLevel{name, -1})
		}
		depth++
		path = rest
	}
	s.cut(depth)

	at := depth
	for at > 0 && s.levels[at-1].fd < 0 {
		at--
	}
	fd := s.Root
	if at > 0 {
		fd = s.levels[at-1].fd
	}
	for ; at < depth; at++ {
		next, err := OpenDir(fd, s.levels[at].name)
		if err != nil {
			return -1, fmt.Errorf("directory %s: %w", Quote(s.levels[at].name), err)
		}
		s.levels[at].fd = next
		if s.open++; s.open > maxStackFDs {
			s.shut(s.firstOpen())
		}
		fd = next
	}
	return fd, nil
}

func (s *DirStack) firstOpen() int {
	for i := range s.levels {
		if s.levels[i].fd >= 0 {
			return i
		}
	}
	return 0
}
