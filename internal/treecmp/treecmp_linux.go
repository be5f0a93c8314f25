package treecmp

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Read reads the tree at root, to compare it later.
func Read(root string, opts Options) (Tree, error) {
	entries, err := read(root, opts)
	if err != nil {
		return Tree{}, fmt.Errorf("treecmp: %w", err)
	}
	return Tree{entries}, nil
}

// Tree is a tree as it was when it was read.
type Tree struct{ entries map[string]*entry }

// Diff lists the differences between the trees a and b as the function Diff does.
func (a Tree) Diff(b Tree, opts Options) []string {
	paths := slices.Sorted(maps.Keys(a.entries))
	for p := range b.entries {
		if _, ok := a.entries[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	var diffs []string
	for _, p := range paths {
		ea, oka := a.entries[p]
		eb, okb := b.entries[p]
		switch {
		case !oka:
			diffs = append(diffs, fmt.Sprintf("%q: only in the second", p))
		case !okb:
			diffs = append(diffs, fmt.Sprintf("%q: only in the first", p))
		default:
			for _, d := range compare(p, ea, eb, opts) {
				diffs = append(diffs, fmt.Sprintf("%q: %s", p, d))
			}
		}
		if len(diffs) >= maxDiffs {
			return append(diffs[:maxDiffs], "and more")
		}
	}
	return diffs
}

// Diff lists the differences between the trees at a and b, a line each, sorted by path, at most 50 of them.
func Diff(a, b string, opts Options) ([]string, error) {
	ta, err := Read(a, opts)
	if err != nil {
		return nil, err
	}
	tb, err := Read(b, opts)
	if err != nil {
		return nil, err
	}
	return ta.Diff(tb, opts), nil
}

// entry is a file, as far as it is compared.
type entry struct {
	st      unix.Stat_t
	link    string            // target of a symbolic link
	content [sha256.Size]byte // of a regular file
	first   string            // the first name of the inode in the tree, if it has several links
	xattrs  map[string]string
}

func compare(p string, a, b *entry, opts Options) []string {
	var diffs []string
	differ := func(what string, a, b any) {
		diffs = append(diffs, fmt.Sprintf("%s: %v and %v", what, a, b))
	}
	if p == "." && !opts.Roots {
		return nil
	}
	if a.st.Mode != b.st.Mode {
		differ("mode", fmt.Sprintf("%#o", a.st.Mode), fmt.Sprintf("%#o", b.st.Mode))
	}
	if a.st.Mode&unix.S_IFMT != b.st.Mode&unix.S_IFMT {
		return diffs
	}
	if a.st.Uid != b.st.Uid || a.st.Gid != b.st.Gid {
		differ("owner", fmt.Sprintf("%d:%d", a.st.Uid, a.st.Gid), fmt.Sprintf("%d:%d", b.st.Uid, b.st.Gid))
	}
	if (opts.SkipTime == nil || !opts.SkipTime(p)) && !sameTime(a.st.Mtim, b.st.Mtim, opts) {
		differ("modification time", fmtTime(a.st.Mtim), fmtTime(b.st.Mtim))
	}
	switch a.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if a.st.Size != b.st.Size {
			differ("size", a.st.Size, b.st.Size)
		} else if a.content != b.content {
			diffs = append(diffs, "content")
		}
	case unix.S_IFLNK:
		if a.link != b.link {
			differ("target", strconv.Quote(a.link), strconv.Quote(b.link))
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if a.st.Rdev != b.st.Rdev {
			differ("device", fmtDev(a.st.Rdev), fmtDev(b.st.Rdev))
		}
	}
	if a.st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if !opts.LinksInTree && a.st.Nlink != b.st.Nlink {
			differ("links", a.st.Nlink, b.st.Nlink)
		}
		if a.first != b.first {
			differ("hard link of", strconv.Quote(a.first), strconv.Quote(b.first))
		}
	}
	names := slices.Collect(maps.Keys(a.xattrs))
	for name := range b.xattrs {
		if _, ok := a.xattrs[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		va, oka := a.xattrs[name]
		vb, okb := b.xattrs[name]
		switch {
		case !oka:
			diffs = append(diffs, "xattr "+name+": only in the second")
		case !okb:
			diffs = append(diffs, "xattr "+name+": only in the first")
		case va != vb:
			differ("xattr "+name, strconv.Quote(va), strconv.Quote(vb))
		}
	}
	return diffs
}

func sameTime(a, b unix.Timespec, opts Options) bool {
	return a.Sec == b.Sec && (a.Nsec == b.Nsec || opts.WholeSeconds && (a.Nsec == 0 || b.Nsec == 0))
}

func fmtTime(t unix.Timespec) string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

func fmtDev(dev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
}

// read reads a tree, by paths that are relative to its root, which is ".".
func read(root string, opts Options) (map[string]*entry, error) {
	dir, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	r := &reader{opts: opts, entries: make(map[string]*entry), inodes: make(map[[2]uint64][]string)}
	e := &entry{}
	if err := unix.Fstat(int(dir.Fd()), &e.st); err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	if opts.Roots {
		if e.xattrs, err = r.xattrs(".", fmt.Sprintf("/proc/self/fd/%d/.", dir.Fd())); err != nil {
			return nil, fmt.Errorf("%s: %w", root, err)
		}
	}
	r.entries["."] = e
	if err := r.dir("", dir); err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	for _, names := range r.inodes {
		if len(names) == 1 && opts.LinksInTree {
			continue
		}
		first := slices.Min(names)
		for _, name := range names {
			r.entries[name].first = first
		}
	}
	return r.entries, nil
}

type reader struct {
	opts    Options
	entries map[string]*entry
	inodes  map[[2]uint64][]string // names of inodes with several links

	// Whatever is read of one file at a time: names of attributes or content, and a value.
	buf, value [xattrMax]byte
}

// xattrMax is the largest list of attributes and the largest value that the kernel has, XATTR_LIST_MAX and
// XATTR_SIZE_MAX.
const xattrMax = 64 << 10

func (r *reader) dir(prefix string, dir *os.File) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		p := path.Join(prefix, name)
		if r.opts.Skip != nil && r.opts.Skip(p) {
			continue
		}
		if err := r.entry(p, name, dir); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
	}
	return nil
}

func (r *reader) entry(p, name string, dir *os.File) error {
	e := &entry{}
	dirfd := int(dir.Fd())
	if err := unix.Fstatat(dirfd, name, &e.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	r.entries[p] = e
	var err error
	if e.xattrs, err = r.xattrs(p, fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name)); err != nil {
		return err
	}
	kind := e.st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && e.st.Nlink > 1 {
		key := [2]uint64{e.st.Dev, e.st.Ino}
		r.inodes[key] = append(r.inodes[key], p)
	}
	switch kind {
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dirfd, name, buf)
		if err != nil {
			return err
		}
		e.link = string(buf[:n])
	case unix.S_IFDIR, unix.S_IFREG:
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		if kind == unix.S_IFDIR {
			return r.dir(p, f)
		}
		h := sha256.New()
		// Hidden behind an io.Reader, since io.Copy has the file allocate a buffer otherwise.
		if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, r.buf[:]); err != nil {
			return err
		}
		h.Sum(e.content[:0])
	}
	return nil
}

func (r *reader) xattrs(p, file string) (map[string]string, error) {
	n, err := unix.Llistxattr(file, r.buf[:])
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil //nolint:nilnil // none
	}
	if err != nil {
		return nil, err
	}
	xs := make(map[string]string)
	for _, name := range bytes.Split(bytes.TrimSuffix(r.buf[:n], []byte{0}), []byte{0}) {
		if r.opts.SkipXattr != nil && r.opts.SkipXattr(p, string(name)) {
			continue
		}
		n, err := unix.Lgetxattr(file, string(name), r.value[:])
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
		xs[string(name)] = string(r.value[:n])
	}
	return xs, nil
}
