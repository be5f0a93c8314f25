package treecopy

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode {
	return inode{uint64(st.Dev), st.Ino} //nolint:unconvert // narrower on some platforms
}

// links knows the files of src with several names, as far as they have been made in dst.
type links struct {
	dirs treeat.DirStack // in dst
	made map[inode]*madeName
}

type madeName struct {
	path  string // in dst
	names uint64 // that may still come
}

// add records that the file of an entry has been made under its first name.
func (l *links) add(e *entry) {
	l.made[inodeOf(&e.st)] = &madeName{path: e.path, names: uint64(e.st.Nlink) - 1} //nolint:unconvert // narrower on some platforms
}

// link makes the name of an entry a hard link, if the file has been made under another name.
func (l *links) link(e *entry) (linked bool, err error) {
	key := inodeOf(&e.st)
	m := l.made[key]
	if m == nil {
		return false, nil
	}
	parent, name := split(m.path)
	dir, err := l.dirs.Dir(parent)
	if err == nil {
		err = unix.Linkat(dir, name, e.dstDir, e.name, 0)
	}
	if errors.Is(err, unix.EMLINK) { // as many as the filesystem allows: the next names get a copy
		delete(l.made, key)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("hard link to %s: %w", treeat.Quote(m.path), err)
	}
	if m.names--; m.names == 0 {
		delete(l.made, key)
	}
	return true, nil
}
