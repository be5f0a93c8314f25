package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/internal/treeat"
)

// trees are the three trees of a merge. No symbolic link in them is followed.
type trees struct {
	theirs, ours, base treeat.DirStack
	roots              []*os.File
}

func openTrees(theirs, ours, base string) (*trees, error) {
	t := &trees{}
	for path, stack := range map[string]*treeat.DirStack{theirs: &t.theirs, ours: &t.ours, base: &t.base} {
		f, err := os.Open(path)
		if err != nil {
			t.close()
			return nil, err
		}
		t.roots = append(t.roots, f)
		stack.Root = int(f.Fd())
	}
	return t, nil
}

func (t *trees) close() {
	for _, stack := range []*treeat.DirStack{&t.theirs, &t.ours, &t.base} {
		stack.Close()
	}
	for _, f := range t.roots {
		f.Close()
	}
}

// looks is a path in each of the trees.
type looks struct{ theirs, ours, base look }

// look is a path in one tree. The zero value is a path that is not there.
type look struct {
	tree *treeat.DirStack
	path string
	st   unix.Stat_t
}

func (l look) exists() bool { return l.tree != nil }
func (l look) isDir() bool  { return l.exists() && l.st.Mode&unix.S_IFMT == unix.S_IFDIR }
func (l look) isFile() bool { return l.exists() && l.st.Mode&unix.S_IFMT == unix.S_IFREG }

// inode identifies a file in one tree.
type inode struct{ device, number uint64 }

func (l look) inode() inode {
	return inode{uint64(l.st.Dev), l.st.Ino} //nolint:unconvert // narrower on some platforms
}

func (t *trees) look(path string) (in looks, err error) {
	for tree, to := range map[*treeat.DirStack]*look{&t.theirs: &in.theirs, &t.ours: &in.ours, &t.base: &in.base} {
		if *to, err = lookIn(tree, path); err != nil {
			return in, fmt.Errorf("%s: %w", treeat.Quote(path), err)
		}
	}
	return in, nil
}

func lookIn(tree *treeat.DirStack, path string) (look, error) {
	l := look{tree: tree, path: path}
	dir, name, err := l.at()
	if err == nil {
		err = treeat.Lstat(dir, name, &l.st)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return look{}, nil
	}
	return l, err
}

// at returns the directory and the name of a path. The directory is valid until the next call.
func (l look) at() (dir int, name string, err error) {
	if l.path == "/" {
		return l.tree.Root, ".", nil
	}
	i := strings.LastIndexByte(l.path, '/')
	dir, err = l.tree.Dir(l.path[:i])
	return dir, l.path[i+1:], err
}

// same reports whether two files have the same type, attributes and content. Times do not count, nor the content of
// directories.
func (t *trees) same(path string, a, b look) (same bool, err error) {
	if a.exists() != b.exists() || !a.exists() {
		return a.exists() == b.exists(), nil
	}
	if same, err := t.sameAttributes(a, b); err != nil || !same {
		return false, err
	}
	switch a.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		same, err = sameContent(a, b)
	case unix.S_IFLNK:
		same, err = sameTarget(a, b)
	case unix.S_IFCHR, unix.S_IFBLK:
		same = a.st.Rdev == b.st.Rdev
	default:
		same = true
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", treeat.Quote(path), err)
	}
	return same, err
}

// sameAttributes reports whether two files have the same type, mode, owner and extended attributes.
func (t *trees) sameAttributes(a, b look) (bool, error) {
	if !a.exists() || !b.exists() || a.st.Mode != b.st.Mode || a.st.Uid != b.st.Uid || a.st.Gid != b.st.Gid {
		return false, nil
	}
	of, err := xattrs(a)
	if err != nil {
		return false, err
	}
	others, err := xattrs(b)
	return err == nil && slices.EqualFunc(of, others, func(a, b xattr) bool { return a.name == b.name && bytes.Equal(a.value, b.value) }), err
}

type xattr struct {
	name  string
	value []byte
}

// xattrs reads the extended attributes of a file that are content, sorted by name.
func xattrs(l look) (list []xattr, err error) {
	dir, name, err := l.at()
	if err != nil {
		return nil, err
	}
	file := treeat.File{Dir: dir, Name: name, FD: -1}
	names := make([]byte, treeat.MaxXattrNames)
	n, err := file.ListXattr(names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" || !treecopy.IsContent(name) {
			continue
		}
		value := make([]byte, treeat.MaxXattrValue)
		n, err := file.GetXattr(name, value)
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", name, err)
		}
		list = append(list, xattr{name, slices.Clone(value[:n])})
	}
	slices.SortFunc(list, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

func sameTarget(a, b look) (bool, error) {
	var targets [2]string
	for i, l := range []look{a, b} {
		dir, name, err := l.at()
		if err != nil {
			return false, err
		}
		if targets[i], err = treeat.Readlink(dir, name); err != nil {
			return false, err
		}
	}
	return targets[0] == targets[1], nil
}

// sameContent reports whether two regular files have the same bytes.
func sameContent(a, b look) (same bool, err error) {
	if a.st.Size != b.st.Size {
		return false, nil
	}
	file, err := a.open(unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer file.Close()
	other, err := b.open(unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer other.Close()
	var buffers [2][128 << 10]byte
	for {
		n, err := io.ReadFull(file, buffers[0][:])
		m, otherErr := io.ReadFull(other, buffers[1][:])
		if n != m || !bytes.Equal(buffers[0][:n], buffers[1][:m]) {
			return false, nil
		}
		for _, err := range []error{err, otherErr} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if err != nil { // both are at their end
			return true, nil
		}
	}
}

// open opens a file or directory.
func (l look) open(flags int) (*os.File, error) {
	dir, name, err := l.at()
	if err != nil {
		return nil, err
	}
	fd, err := treeat.Open(dir, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), l.path), nil
}

// walk calls do with each path below a directory of the fork.
func (t *trees) walk(ctx context.Context, top string, do func(path string, l look)) error {
	for waiting := []string{top}; len(waiting) > 0; {
		dir := waiting[len(waiting)-1]
		waiting = waiting[:len(waiting)-1]
		f, err := look{tree: &t.theirs, path: dir}.open(unix.O_RDONLY | unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		names, err := f.Readdirnames(-1)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			path := strings.TrimSuffix(dir, "/") + "/" + name
			l, err := lookIn(&t.theirs, path)
			if err != nil {
				return fmt.Errorf("%s: %w", treeat.Quote(path), err)
			}
			do(path, l)
			if l.isDir() {
				waiting = append(waiting, path)
			}
		}
	}
	return nil
}

// withAllNames returns the changes of the fork, sorted, with all names of each changed file. A file may have got a name, so
// that its other names are not listed. Only then the fork's tree is walked.
func (t *trees) withAllNames(ctx context.Context, changes []archive.Change) ([]archive.Change, error) {
	listed := make(map[string]bool, len(changes))
	missing := make(map[uint64]uint64) // names that are not listed, by inode
	for _, c := range changes {
		listed[c.Path] = true
		if c.Kind == archive.ChangeDelete {
			continue
		}
		l, err := lookIn(&t.theirs, c.Path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", treeat.Quote(c.Path), err)
		}
		links := uint64(l.st.Nlink) //nolint:unconvert // narrower on some platforms
		if !l.exists() || l.isDir() || links < 2 {
			continue
		}
		if left, ok := missing[l.st.Ino]; ok {
			links = left
		}
		missing[l.st.Ino] = links - 1
	}
	all := slices.Clone(changes)
	incomplete := false
	for _, left := range missing {
		incomplete = incomplete || left > 0
	}
	if incomplete {
		err := t.walk(ctx, "/", func(path string, l look) {
			if missing[l.st.Ino] > 0 && !l.isDir() && !listed[path] {
				all = append(all, archive.Change{Path: path, Kind: archive.ChangeModify})
			}
		})
		if err != nil {
			return nil, err
		}
	}
	sortByPath(all)
	return all, nil
}
