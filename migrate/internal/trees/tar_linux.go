package trees

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	pathpkg "path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

// tarVerifier compares a tree with a tar.
type tarVerifier struct {
	ctx    context.Context
	tree   *dir
	top    string            // path of the tree
	dirs   map[string]string // paths of directories in the tree, by their names in the tar
	names  map[string]*tarName
	linked map[string]*tarName // files of aufs that have several names, by name of the file
	root   *tar.Header

	gone, opaque map[string]bool // names that the layer removes, and directories that hide those below
	above        map[string]bool // directories above names of the tar
	buffers      [2][]byte
}

// tarName is the last entry of a tar with that name.
type tarName struct {
	headers []*tar.Header // of the file; more than one if hard links have others
	target  string        // of a hard link
	same    bool          // the tree's file has the same bytes
	sum     []byte        // of the bytes, if they are compared later
	seen    bool
}

func verifyTar(ctx context.Context, got, base *os.File, from io.Reader) (err error) {
	v := &tarVerifier{
		ctx: ctx, dirs: make(map[string]string), names: make(map[string]*tarName), linked: make(map[string]*tarName),
		gone: make(map[string]bool), opaque: make(map[string]bool), above: make(map[string]bool),
		buffers: [2][]byte{make([]byte, 1<<17), make([]byte, 1<<17)},
	}
	if v.tree, err = root(got, treecopy.IsContent); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.tree.close()) }()
	below, err := root(base, treecopy.IsContent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, below.close()) }()
	if v.top, err = pathOf(v.tree.file); err != nil {
		return err
	}
	if err := v.read(tar.NewReader(from)); err != nil {
		return err
	}
	v.above = make(map[string]bool)
	for name := range v.names {
		v.noteAbove(name)
	}
	for name := range v.gone {
		v.noteAbove(name)
	}
	if err := v.checkRoot(below); err != nil {
		return err
	}
	if err := v.walk(v.tree, below, 0); err != nil {
		return err
	}
	for name, t := range v.names {
		if !t.seen {
			return tarDifference(name, "it is missing")
		}
	}
	return nil
}

// tarDifference is the error for a tree that differs from the tar.
func tarDifference(path, format string, args ...any) error {
	return fault.New(errdefs.ErrDataLoss, "%q differs from the layer's tar: %s", "/"+path, fmt.Sprintf(format, args...))
}

// pathOf is the path of an open file.
func pathOf(f *os.File) (string, error) {
	return os.Readlink(treeat.ProcPath(int(f.Fd()), ""))
}

func (v *tarVerifier) noteAbove(name string) {
	for dir := pathpkg.Dir(name); dir != "." && !v.above[dir]; dir = pathpkg.Dir(dir) {
		v.above[dir] = true
	}
}

// read reads the tar, by the rules by which Docker applies one.
func (v *tarVerifier) read(in *tar.Reader) error {
	for {
		if err := context.Cause(v.ctx); err != nil {
			return err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.As(errdefs.ErrDataLoss, err)
		}
		if err := v.entry(h, in); err != nil {
			return err
		}
	}
}

func (v *tarVerifier) entry(h *tar.Header, in io.Reader) error {
	name := pathpkg.Clean(strings.TrimLeft(h.Name, "/"))
	base := pathpkg.Base(name)
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return nil
	case name == ".":
		v.root = h
		return nil
	case !filepath.IsLocal(name):
		return tarDifference(name, "it is outside of the tree")
	case strings.HasPrefix(name, plinkDir):
		sum := sha256.New()
		_, err := io.Copy(sum, in)
		v.linked[base] = &tarName{headers: []*tar.Header{h}, sum: sum.Sum(nil)}
		return err
	case base == opaqueMark:
		dir, err := v.resolve(pathpkg.Dir(name))
		v.opaque[dir] = true
		return err
	case strings.HasPrefix(base, metaPrefix):
		return nil
	}
	dir, err := v.resolve(pathpkg.Dir(name))
	if err != nil {
		return err
	}
	if removed, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		path := join(dir, removed)
		v.gone[path] = true
		v.forget(path, true)
		return nil
	}
	path := join(dir, base)
	v.forget(path, h.Typeflag != tar.TypeDir)
	t := &tarName{headers: []*tar.Header{h}}
	v.names[path] = t
	switch h.Typeflag {
	case tar.TypeLink:
		return v.hardLink(t, h)
	case tar.TypeReg, tar.TypeGNUSparse:
		t.same, err = v.compare(path, h.Size, in)
	}
	return err
}

// plinkDir is where aufs keeps files that have several names.
const plinkDir = ".wh..wh.plnk/"

// forget forgets entries that a later one replaces, or removes.
func (v *tarVerifier) forget(path string, below bool) {
	delete(v.names, path)
	if !below || !v.above[path] {
		v.noteAbove(path)
		return
	}
	for name := range v.names {
		if strings.HasPrefix(name, path+"/") {
			delete(v.names, name)
		}
	}
}

func (v *tarVerifier) hardLink(t *tarName, h *tar.Header) error {
	target := pathpkg.Clean(strings.TrimLeft(h.Linkname, "/"))
	if !filepath.IsLocal(target) {
		return tarDifference(target, "it is outside of the tree")
	}
	if strings.HasPrefix(target, plinkDir) {
		if file, ok := v.linked[pathpkg.Base(target)]; ok {
			t.headers, t.sum = file.headers, file.sum
			return nil
		}
	}
	dir, err := v.resolve(pathpkg.Dir(target))
	if err != nil {
		return err
	}
	t.target = join(dir, pathpkg.Base(target))
	if file, ok := v.names[t.target]; ok && file.target == "" {
		// Its mode and owner are the file's too.
		other := *file.headers[0]
		other.Mode, other.Uid, other.Gid = h.Mode, h.Uid, h.Gid
		file.headers = append(file.headers, &other)
	}
	return nil
}

// resolve finds a directory of the tree, of which the tar may have a name that leads over symbolic links. An absent one
// is not the tree's, and keeps its name.
func (v *tarVerifier) resolve(name string) (string, error) {
	if name == "." {
		return "", nil
	}
	if path, ok := v.dirs[name]; ok {
		return path, nil
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(v.tree.file.Fd()), name, how)
	for errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat2(int(v.tree.file.Fd()), name, how)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return name, nil
	case err != nil:
		return "", &fs.PathError{Op: "open", Path: "/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	path, err := pathOf(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	path, ok := strings.CutPrefix(path, v.top)
	if !ok {
		return "", tarDifference(name, "it is outside of the tree")
	}
	path = strings.TrimPrefix(path, "/")
	v.dirs[name] = path
	return path, nil
}

// compare reports whether a file of the tree has the bytes that follow in the tar.
func (v *tarVerifier) compare(path string, size int64, in io.Reader) (same bool, err error) {
	fd, err := eintr.Retry(func() (int, error) {
		return unix.Openat2(int(v.tree.file.Fd()), path, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
	})
	if err != nil {
		return false, nil // it is another kind of file, or replaced
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != size {
		return false, err
	}
	for {
		if err := context.Cause(v.ctx); err != nil {
			return false, err
		}
		n, errTar := io.ReadFull(in, v.buffers[0])
		if err := notEnd(errTar); err != nil {
			return false, err
		}
		m, err := io.ReadFull(f, v.buffers[1][:n])
		if err := notEnd(err); err != nil {
			return false, err
		}
		if !bytes.Equal(v.buffers[0][:n], v.buffers[1][:m]) {
			return false, nil
		}
		if errTar != nil {
			return true, nil
		}
	}
}

// checkRoot compares the root, which is not the layer's: nobody but its owner may write there.
func (v *tarVerifier) checkRoot(base *dir) error {
	e, err := v.tree.self()
	if err != nil {
		return err
	}
	own := e.st.Uid == 0 && e.st.Gid == 0 && e.st.Mode&0o7022 == 0
	if !own && base != nil {
		b, err := base.self()
		if err != nil {
			return err
		}
		own = e.st.Mode == b.st.Mode && e.st.Uid == b.st.Uid && e.st.Gid == b.st.Gid
	}
	if !own && v.root != nil {
		own = sameOwner(e, v.root)
	}
	if !own {
		return tarDifference("", "mode or owner")
	}
	return nil
}

func sameOwner(e *entry, h *tar.Header) bool {
	return int64(e.st.Mode&0o7777) == h.Mode&0o7777 && int(e.st.Uid) == h.Uid && int(e.st.Gid) == h.Gid
}

// walk compares a directory. base is nil if there is none below, or if it is hidden.
func (v *tarVerifier) walk(got, base *dir, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	if err := context.Cause(v.ctx); err != nil {
		return err
	}
	names, err := got.names()
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
		if err := v.name(got, base, name, depth); err != nil {
			return err
		}
	}
	names, err = base.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if path := join(base.path, name); !there[name] && !v.gone[path] {
			return tarDifference(path, "it is missing, and the layer below has it")
		}
	}
	return nil
}

func (v *tarVerifier) name(got, base *dir, name string, depth int) error {
	e, err := got.entry(name)
	if err != nil {
		return err
	}
	if e == nil {
		return tarDifference(join(got.path, name), "it vanishes")
	}
	var b *entry
	if !v.gone[e.path()] {
		if b, err = base.entry(name); err != nil {
			return err
		}
	}
	how := ""
	switch t := v.names[e.path()]; {
	case t != nil:
		t.seen = true
		how, err = v.differs(e, t)
	case b != nil:
		how, err = v.differsBelow(e, b)
	case e.isDir() && v.above[e.path()]:
		// The tar implies it.
		if e.st.Uid != 0 || e.st.Gid != 0 || e.st.Mode&0o7022 != 0 {
			how = "mode or owner"
		}
	default:
		how = "the tar does not have it"
	}
	if err != nil {
		return err
	}
	if how != "" {
		return tarDifference(e.path(), "%s", how)
	}
	if !e.isDir() {
		return nil
	}
	return v.sub(e, b, depth)
}

func (v *tarVerifier) sub(e, b *entry, depth int) (err error) {
	got, err := e.dir.sub(e.name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, got.close()) }()
	var base *dir
	if b.isDir() && !v.opaque[e.path()] {
		if base, err = b.dir.sub(b.name); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, base.close()) }()
	}
	return v.walk(got, base, depth+1)
}

// differsBelow says how a name that only the layer below has differs from there. A clone keeps inode numbers and times of
// change.
func (v *tarVerifier) differsBelow(e, b *entry) (string, error) {
	if e.st.Ino == b.st.Ino && e.st.Ctim == b.st.Ctim && e.st.Mode == b.st.Mode {
		return "", nil
	}
	if e.isDir() {
		e.st.Mtim = b.st.Mtim // names in it have changed
	}
	how, err := differs(e, b)
	if how == "" && err == nil && e.isPlain() {
		same, err := sameBytes(e, b, &v.buffers)
		if err != nil {
			return "", err
		}
		if !same {
			how = "content"
		}
	}
	if how != "" {
		how += ", though only the layer below has it"
	}
	return how, err
}

// differs says how a name differs from its entry.
func (v *tarVerifier) differs(e *entry, t *tarName) (string, error) {
	if t.target != "" {
		return v.differsLink(e, t)
	}
	how := ""
	for _, h := range t.headers {
		var err error
		if how, err = differsHeader(e, h); how == "" || err != nil {
			if err != nil {
				return "", err
			}
			break
		}
	}
	if how != "" || !e.isPlain() {
		return how, nil
	}
	same, err := t.same, error(nil)
	if t.sum != nil {
		same, err = hasSum(e, t.sum)
	}
	if err == nil && !same {
		how = "content"
	}
	return how, err
}

func hasSum(e *entry, sum []byte) (_ bool, err error) {
	f, err := e.open()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	_, err = io.Copy(hash, f)
	return bytes.Equal(hash.Sum(nil), sum), err
}

func (v *tarVerifier) differsLink(e *entry, t *tarName) (string, error) {
	dir, name := pathpkg.Split(t.target)
	fd, err := unix.Openat2(int(v.tree.file.Fd()), "./"+dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return "its other name is missing", nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "its other name is missing", nil
	}
	if (inode{st.Dev, st.Ino}) != e.inode() {
		return "it is not a hard link of the same file", nil
	}
	return "", nil
}

// tarKinds are the types of files by those of entries.
var tarKinds = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR,
	tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

// differsHeader says how the properties of a file differ from those of a header.
func differsHeader(e *entry, h *tar.Header) (string, error) {
	kind := tarKinds[h.Typeflag]
	switch {
	case e.kind() != kind:
		return "type", nil
	case kind == unix.S_IFLNK && (int(e.st.Uid) != h.Uid || int(e.st.Gid) != h.Gid):
		return "owner", nil
	case kind != unix.S_IFLNK && !sameOwner(e, h):
		return "mode or owner", nil
	case kind == unix.S_IFREG && e.st.Size != h.Size:
		return "size", nil
	case (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && e.st.Rdev != unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)):
		return "device", nil
	}
	if h.Typeflag == tar.TypeSymlink {
		target, err := e.link()
		if err != nil || target != h.Linkname {
			return "target", err
		}
	}
	return differsXattrs(e, h)
}

func differsXattrs(e *entry, h *tar.Header) (string, error) {
	got, err := e.attributes()
	if err != nil {
		return "", err
	}
	want := make(map[string]string)
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && treecopy.IsContent(name) {
			want[name] = value
		}
	}
	for name, value := range got {
		if other, ok := want[name]; !ok || other != value {
			return "attribute " + name, nil
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			return "attribute " + name, nil
		}
	}
	return "", nil
}
