//go:build linux

package graphtest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// snapshot describes a tree by path relative to its root, which is ".".
type snapshot map[string]entry

// entry is all that a program can see of a file, except the times that no layer format keeps.
type entry struct {
	mode      uint32 // type and permissions, as in struct stat
	uid, gid  uint32
	size      int64 // 0 for directories, whose size is the filesystem's affair
	rdev      uint64
	sec, nsec int64  // time of modification
	target    string // of a symbolic link
	sum       string // SHA-256 of a regular file
	xattrs    string // names and values, sorted
	links     uint64 // 0 for directories
	first     string // the first path of the same inode, where there are several

	allocated int64 // bytes on disk; not compared
}

func (e entry) String() string {
	s := fmt.Sprintf("mode=%o owner=%d:%d size=%d rdev=%#x mtime=%d.%09d links=%d", e.mode, e.uid, e.gid, e.size, e.rdev, e.sec, e.nsec, e.links)
	for _, field := range []struct{ name, value string }{
		{"first", e.first}, {"target", e.target}, {"xattrs", e.xattrs}, {"sha256", e.sum},
	} {
		if field.value != "" {
			s += fmt.Sprintf(" %s=%q", field.name, field.value)
		}
	}
	return s
}

type inode struct{ dev, ino uint64 }

// scan describes the tree at dir. Paths may be longer than PATH_MAX.
func scan(t testing.TB, dir string) snapshot {
	t.Helper()
	s := make(snapshot)
	seen := make(map[inode]string)
	root, err := os.Open(dir)
	require.NoError(t, err)
	defer func() { _ = root.Close() }()

	e, _, err := describe(root, ".")
	require.NoError(t, err)
	s["."] = e
	require.NoError(t, s.addDir(root, "", seen))
	return s
}

// addDir adds the content of the directory d; prefix is d's path with a slash behind it, or "".
func (s snapshot) addDir(d *os.File, prefix string, seen map[inode]string) error {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		path := prefix + name
		e, ino, err := describe(d, name)
		if err != nil {
			return fmt.Errorf("describe %q: %w", path, err)
		}
		if e.links > 1 {
			if seen[ino] == "" {
				seen[ino] = path
			}
			e.first = seen[ino]
		}
		s[path] = e
		if e.mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := os.Open(procPath(d, name))
		if err != nil {
			return err
		}
		err = s.addDir(sub, path+"/", seen)
		if err := errors.Join(err, sub.Close()); err != nil {
			return err
		}
	}
	return nil
}

// describe describes one name in a directory.
func describe(d *os.File, name string) (entry, inode, error) {
	path := procPath(d, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return entry{}, inode{}, err
	}
	e := entry{
		mode: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size, sec: st.Mtim.Sec, nsec: st.Mtim.Nsec,
		links:     uint64(st.Nlink), //nolint:unconvert // uint32 on arm64
		allocated: st.Blocks * 512,
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.size, e.links = 0, 0
	case unix.S_IFCHR, unix.S_IFBLK:
		e.rdev = uint64(st.Rdev) //nolint:unconvert // uint32 on mips
	case unix.S_IFLNK:
		e.target, err = os.Readlink(path)
	case unix.S_IFREG:
		e.sum, err = sum(path)
	}
	if err == nil {
		e.xattrs, err = xattrs(path)
	}
	return e, inode{uint64(st.Dev), st.Ino}, err //nolint:unconvert // uint32 on mips
}

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}

// xattrs lists the extended attributes of path, without the label that a host's SELinux policy gives.
func xattrs(path string) (string, error) {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return "", err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	var all []string
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, name+"="+hex.EncodeToString(value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

// asApplied is a tree after its way through a layer tar: no sockets, times in whole seconds and from 1970 on, and
// nothing of the root itself.
func (s snapshot) asApplied() snapshot {
	applied := make(snapshot, len(s))
	for path, e := range s {
		if path == "." || e.mode&unix.S_IFMT == unix.S_IFSOCK {
			continue
		}
		e.sec, e.nsec = max(e.sec, 0), 0
		applied[path] = e
	}
	return applied
}

// without is the tree with forget called on each entry.
func (s snapshot) without(forget func(e *entry)) snapshot {
	rest := make(snapshot, len(s))
	for path, e := range s {
		forget(&e)
		rest[path] = e
	}
	return rest
}

// added lists the whole tree as changes of an empty one.
func (s snapshot) added() []string {
	list := make([]string, 0, len(s))
	for _, path := range slices.Sorted(maps.Keys(s)) {
		if path != "." {
			list = append(list, "A /"+path)
		}
	}
	return list
}

// assertSameTree fails the test unless got is want, and says where they differ.
func assertSameTree(t testing.TB, want, got snapshot, what string) {
	t.Helper()
	var differences []string
	for _, path := range slices.Sorted(maps.Keys(want)) {
		w := want[path]
		g, ok := got[path]
		w.allocated, g.allocated = 0, 0
		switch {
		case !ok:
			differences = append(differences, short(path)+" is missing")
		case w != g:
			differences = append(differences, fmt.Sprintf("%s\n\twant %s\n\t got %s", short(path), w, g))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok {
			differences = append(differences, short(path)+" should not be there")
		}
	}
	failOn(t, differences, what)
}

// assertSameList fails the test unless got is want, and lists missing and surplus elements.
func assertSameList(t testing.TB, want, got []string, what string) {
	t.Helper()
	if slices.Equal(want, got) {
		return
	}
	var differences []string
	for _, line := range want {
		if !slices.Contains(got, line) {
			differences = append(differences, short(line)+" is missing")
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			differences = append(differences, short(line)+" should not be there")
		}
	}
	if differences == nil {
		differences = []string{"the order or number of lines differs"}
	}
	failOn(t, differences, what)
}

// failOn fails the test and shows the first differences, if there are any.
func failOn(t testing.TB, differences []string, what string) {
	t.Helper()
	const most = 20
	if len(differences) == 0 {
		return
	}
	if len(differences) > most {
		differences = append(differences[:most:most], fmt.Sprintf("and %d more", len(differences)-most))
	}
	assert.Fail(t, what+":\n"+strings.Join(differences, "\n"))
}

// short quotes a path, cut in the middle if it is very long.
func short(path string) string {
	const most = 120
	if len(path) <= most {
		return strconv.Quote(path)
	}
	return fmt.Sprintf("%q[…]%q (%d bytes)", path[:most/2], path[len(path)-most/2:], len(path))
}
