package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"

	"github.com/moby/go-archive"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// Apply applies an uncompressed layer tar to the tree at dir, with the meaning that the package describes,
// and returns the sum of the sizes in its headers. It reads r up to the end of the archive and possibly
// further; what is left belongs to the caller.
//
// After an error the tree holds some part of the layer. Errors that an entry caused are [EntryError]s and
// say which, among them [ErrMalformed], [ErrTooLarge] and what the kernel answered (unix.EDQUOT,
// unix.ENOSPC). When ctx ends, Apply stops before the next entry or megabyte of data, but not while it
// waits in a Read of r. Nothing is left running and no descriptor open.
//
// Nobody else may change the tree meanwhile.
func Apply(ctx context.Context, dir string, r io.Reader, opts ApplyOptions) (size int64, err error) {
	a, err := newApplier(ctx, dir, opts)
	if err != nil {
		return 0, fmt.Errorf("layertar: apply: %w", err)
	}
	defer a.close()
	size, err = a.run(r)
	if err != nil {
		return 0, fmt.Errorf("layertar: apply: %w", err)
	}
	a.setter.report(opts.Logger)
	return size, nil
}

// applier applies one layer. All that decides what an entry means happens in one goroutine, in the order of
// the tar: names are resolved, what is in the way is removed, and everything but regular files is made. The
// files are made by a pool of workers, each knowing the directory and that the name is free. Whatever
// depends on a file's being there waits for it.
type applier struct {
	opts   ApplyOptions
	userNS bool
	es     *entries
	dirs   *dirs
	pool   *pool
	setter setter
	plinks plinks
	size   int64
}

func newApplier(ctx context.Context, dir string, opts ApplyOptions) (*applier, error) {
	a := &applier{opts: opts, userNS: userns.RunningInUserNS()}
	a.setter.bestEffort = opts.BestEffortXattrs
	workers := opts.Workers
	if workers <= 0 {
		workers = min(maxApplyWorkers, runtime.GOMAXPROCS(0))
	}
	a.pool = newPool(ctx, workers, a.makeFile)
	var err error
	a.dirs, err = openRoot(dir, opts.Empty)
	if err != nil {
		a.pool.close()
		return nil, err
	}
	a.dirs.mkdir, a.dirs.settle = a.implied, a.pool.wait
	return a, nil
}

// maxApplyWorkers is the number of workers beyond which more do not pay: they all need the locks of one
// file system tree.
const maxApplyWorkers = 4

func (a *applier) close() {
	a.pool.close()
	a.plinks.close()
	a.dirs.close()
}

func (a *applier) run(r io.Reader) (int64, error) {
	a.es = newEntries(a.pool.ctx, r)
	err := a.entries()
	if err == nil {
		err = a.pool.barrier()
	}
	if err == nil {
		err = a.finish()
	}
	if err != nil {
		// The first entry that failed is the one to tell of, whoever noticed first.
		var mine, theirs *EntryError
		if perr := a.pool.failure(); errors.As(perr, &theirs) && (!errors.As(err, &mine) || theirs.Index <= mine.Index) {
			return 0, perr
		}
		return 0, err
	}
	return a.size, nil
}

func (a *applier) entries() error {
	for {
		hdr, err := a.es.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.count(hdr); err != nil {
			return a.es.wrap(err)
		}
		if err := a.entry(hdr); err != nil {
			return a.es.wrap(err)
		}
	}
}

// count adds an entry to the size of the layer.
func (a *applier) count(hdr *tar.Header) error {
	switch {
	case hdr.Size < 0 || hdr.Size > math.MaxInt64-a.size:
		return fmt.Errorf("%w: size %d", ErrMalformed, hdr.Size)
	case hdr.Size > maxSparse && isSparse(hdr):
		return fmt.Errorf("%w: a sparse file of %d bytes", ErrMalformed, hdr.Size)
	}
	a.size += hdr.Size
	if a.opts.MaxBytes > 0 && a.size > a.opts.MaxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, a.opts.MaxBytes)
	}
	return nil
}

func (a *applier) entry(hdr *tar.Header) error {
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return nil // the root is not the layer's
	}
	if strings.HasPrefix(name, archive.WhiteoutMetaPrefix) && name != archive.WhiteoutOpaqueDir {
		if strings.HasPrefix(name, archive.WhiteoutLinkDir) && hdr.Typeflag == tar.TypeReg {
			return a.keepPlink(name, hdr)
		}
		return nil
	}
	path, base := splitName(name)
	d, err := a.dirs.find(path, true)
	if err != nil {
		return err
	}
	if base == archive.WhiteoutOpaqueDir {
		return a.opaque(d)
	}
	if hidden, ok := strings.CutPrefix(base, archive.WhiteoutPrefix); ok {
		return a.whiteout(d, hidden)
	}
	return a.put(d, base, hdr)
}

// whiteout removes a name.
func (a *applier) whiteout(d *dir, name string) error {
	switch name {
	case "", ".", "..":
		return fmt.Errorf("%w: a whiteout of %q", ErrMalformed, name)
	}
	st, err := a.lookup(d, name)
	if err != nil {
		return err
	}
	return a.remove(d, name, st.Mode)
}

// lookup describes a name, once it is no longer being written. Mode is 0 if it does not exist.
func (a *applier) lookup(d *dir, name string) (st unix.Stat_t, err error) {
	t, written := d.written[name]
	if d.fresh && !written {
		return st, nil
	}
	if err := a.pool.wait(t); err != nil {
		return st, err
	}
	fd, err := a.dirs.fd(d)
	if err != nil {
		return st, err
	}
	err = lstatat(fd, name, &st)
	if err == unix.ENOENT { //nolint:errorlint // a bare errno
		return unix.Stat_t{}, nil
	}
	if err != nil {
		err = fmt.Errorf("stat: %w", err)
	}
	return st, err
}

// remove removes a name of the given mode, 0 being one that does not exist, and all that is below it.
func (a *applier) remove(d *dir, name string, mode uint32) error {
	if mode == 0 {
		return nil
	}
	isDir := mode&unix.S_IFMT == unix.S_IFDIR
	if isDir {
		// Files may be on the way into it.
		if err := a.pool.barrier(); err != nil {
			return err
		}
		a.dirs.forget(d, name)
	}
	if isDir || mode&unix.S_IFMT == unix.S_IFLNK {
		a.dirs.forgetPaths()
	}
	fd, err := a.dirs.fd(d)
	if err != nil {
		return err
	}
	return removeTree(a.pool.ctx, fd, name)
}

// implied makes a directory that an entry needs and no entry made.
func (a *applier) implied(parent *dir, name string) (*dir, error) {
	m := &meta{uid: keepID, gid: keepID, mode: impliedMode}
	if uid, gid := a.opts.IDMap.RootPair(); uid != 0 || gid != 0 {
		m.uid, m.gid = uid, gid
	}
	return a.mkdir(parent, name, m)
}

// mkdir makes a directory. Its times are set at the end, if at all.
func (a *applier) mkdir(parent *dir, name string, m *meta) (*dir, error) {
	fd, err := a.dirs.fd(parent)
	if err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(fd, name, m.mode&permMask); err != nil {
		return nil, fmt.Errorf("create directory: %w", err)
	}
	d := parent.child(name, true)
	d.acl = aclNone // it is taken away below, and set at the end
	parent.wrote(name, 0)
	return d, a.dress(parent, fd, name, m)
}

// dress gives a name that was just made, and is no regular file, its attributes except times.
func (a *applier) dress(d *dir, fd int, name string, m *meta) error {
	t := target{dirfd: fd, name: name, fd: -1}
	var st unix.Stat_t
	if err := lstatat(fd, name, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && d.handsDownACL(fd) {
		if err := t.dropACL(); err != nil {
			return err
		}
		if err := lstatat(fd, name, &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
	}
	return a.setter.set(t, &st, m)
}

// put makes what an entry describes, in place of what is there.
func (a *applier) put(d *dir, name string, hdr *tar.Header) error {
	switch hdr.Typeflag {
	case tar.TypeDir, tar.TypeReg, tar.TypeGNUSparse, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fmt.Errorf("%w: entry type %q", ErrMalformed, hdr.Typeflag)
	}
	var link string
	if hdr.Typeflag == tar.TypeLink {
		target, err := cleanName(hdr.Linkname)
		switch {
		case err != nil:
			return fmt.Errorf("hard link to %s: %w", quoteName(hdr.Linkname), err)
		case strings.HasPrefix(target, archive.WhiteoutLinkDir):
			return a.putPlink(d, name, target)
		case target == ".":
			return fmt.Errorf("%w: a hard link to the root", ErrMalformed)
		}
		link = target
	}
	m, err := metaOf(hdr, a.opts.IDMap)
	if err != nil {
		return err
	}
	st, err := a.lookup(d, name)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return a.putDir(d, name, &st, &m)
	case tar.TypeReg, tar.TypeGNUSparse:
		return a.putFile(d, name, &st, m, hdr.Size, a.es.tr)
	case tar.TypeLink:
		return a.putLink(d, name, &st, &m, link)
	}
	if err := a.remove(d, name, st.Mode); err != nil {
		return err
	}
	fd, err := a.dirs.fd(d)
	if err != nil {
		return err
	}
	made, err := a.makeNode(fd, name, hdr, &m)
	if err != nil || !made {
		return err
	}
	d.wrote(name, 0)
	if err := a.dress(d, fd, name, &m); err != nil {
		return err
	}
	return setTimes(fd, name, &m.times)
}

// makeNode makes a symbolic link, device or fifo. Devices that a user namespace may not make are left out,
// as they are by the peers.
func (a *applier) makeNode(fd int, name string, hdr *tar.Header, m *meta) (made bool, err error) {
	if hdr.Typeflag == tar.TypeSymlink {
		if err := unix.Symlinkat(hdr.Linkname, fd, name); err != nil {
			return false, fmt.Errorf("create symbolic link to %s: %w", quoteName(hdr.Linkname), err)
		}
		return true, nil
	}
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[hdr.Typeflag]
	dev := 0
	if hdr.Typeflag != tar.TypeFifo {
		// The kernel has 12 bits for the one and 20 for the other (include/linux/kdev_t.h), and cuts off more.
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return false, fmt.Errorf("%w: device %d:%d", ErrMalformed, hdr.Devmajor, hdr.Devminor)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	err = unix.Mknodat(fd, name, kind|m.mode&permMask, dev)
	if errors.Is(err, unix.EPERM) && a.userNS {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("create device or fifo: %w", err)
	}
	return true, nil
}

func (a *applier) putDir(d *dir, name string, st *unix.Stat_t, m *meta) error {
	late := &lateMeta{times: m.times}
	for i, x := range m.xattrs {
		if x.name == aclDefault {
			// Until the end: what is made in the directory is not to inherit it.
			late.defaultACL = &x.value
			m.xattrs = append(m.xattrs[:i:i], m.xattrs[i+1:]...)
			break
		}
	}
	var err error
	c := d.children[name]
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if c == nil {
			c = d.child(name, false)
		}
		var fd int
		fd, err = a.dirs.fd(d)
		if err == nil {
			err = a.setter.set(target{dirfd: fd, name: name, fd: -1}, st, m)
		}
		d.wrote(name, 0)
	} else {
		err = a.remove(d, name, st.Mode)
		if err == nil {
			c, err = a.mkdir(d, name, m)
		}
	}
	if err != nil {
		return err
	}
	c.late = late
	return nil
}

func (a *applier) putLink(d *dir, name string, st *unix.Stat_t, m *meta, link string) error {
	path, base := splitName(link)
	// The target is looked for before anything is removed, and again after it, since the removal may have
	// taken it or its path away.
	td, err := a.dirs.find(path, false)
	if err == nil && td == d && base == name {
		return fmt.Errorf("%w: a hard link to itself", ErrMalformed)
	}
	if err := a.remove(d, name, st.Mode); err != nil {
		return err
	}
	td, err = a.dirs.find(path, false)
	if err == nil {
		err = a.pool.wait(td.written[base])
	}
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quoteName(link), err)
	}
	to, err := a.dirs.hold(d)
	if err != nil {
		return err
	}
	defer to.release()
	from, err := a.dirs.fd(td)
	if err != nil {
		return err
	}
	if err := unix.Linkat(from, base, to.fd, name, 0); err != nil {
		return fmt.Errorf("hard link to %s: %w", quoteName(link), err)
	}
	d.wrote(name, 0)
	var now unix.Stat_t
	if err := lstatat(to.fd, name, &now); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := a.setter.set(target{dirfd: to.fd, name: name, fd: -1}, &now, m); err != nil {
		return err
	}
	if now.Mode&unix.S_IFMT == unix.S_IFLNK || (now.Atim == m.times[0] && now.Mtim == m.times[1]) {
		return nil
	}
	return setTimes(to.fd, name, &m.times)
}

func setTimes(fd int, name string, times *[2]unix.Timespec) error {
	if err := utimensat(fd, name, times); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// opaque removes what lower layers put into a directory.
func (a *applier) opaque(d *dir) error {
	if d.fresh {
		return nil
	}
	if err := a.pool.barrier(); err != nil {
		return err
	}
	return a.clearLower(d)
}

// clearLower removes what is below a directory and was not put there by this layer.
func (a *applier) clearLower(d *dir) error {
	if d.fresh {
		return nil
	}
	names, err := a.list(d)
	if err != nil {
		return err
	}
	for _, e := range names {
		c := d.children[e.name]
		if c != nil && c.holds() {
			if err := a.clearLower(c); err != nil {
				return err
			}
			d.wrote(e.name, 0)
			continue
		}
		if _, ok := d.written[e.name]; ok {
			if c != nil {
				err = a.clearLower(c) // a directory of both
			}
		} else {
			err = a.remove(d, e.name, unix.S_IFDIR) // or whatever it is
		}
		if err != nil {
			return err
		}
	}
	d.fresh = true
	return nil
}

// holds says whether this layer put anything below a directory.
func (d *dir) holds() bool {
	todo := []*dir{d}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if len(d.written) > 0 {
			return true
		}
		for _, c := range d.children {
			todo = append(todo, c)
		}
	}
	return false
}

// list returns all names of a directory.
func (a *applier) list(d *dir) ([]dirent, error) {
	at, err := a.dirs.fd(d)
	if err != nil {
		return nil, err
	}
	fd, err := openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd)
	var all, some []dirent
	buf := make([]byte, 32<<10)
	for {
		some, err = readDir(fd, buf, some)
		if err != nil {
			return nil, fmt.Errorf("read directory: %w", err)
		}
		if len(some) == 0 {
			return all, nil
		}
		all = append(all, some...)
	}
}

// finish sets what has to wait until nothing is made in a directory any more.
func (a *applier) finish() error {
	todo := []*dir{a.dirs.root}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := a.pool.ctx.Err(); err != nil {
			return context.Cause(a.pool.ctx)
		}
		for _, c := range d.children {
			if c.late != nil {
				if err := a.finishDir(c); err != nil {
					return fmt.Errorf("directory %s: %w", quoteName(c.path()), err)
				}
			}
			if len(c.children) > 0 {
				todo = append(todo, c)
			}
		}
	}
	return nil
}

func (a *applier) finishDir(d *dir) error {
	fd, err := a.dirs.fd(d.parent)
	if err != nil {
		return err
	}
	if acl := d.late.defaultACL; acl != nil {
		m := meta{xattrs: []xattr{{aclDefault, *acl}}}
		var st unix.Stat_t
		if err := lstatat(fd, d.name, &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		m.uid, m.gid, m.mode = int(st.Uid), int(st.Gid), st.Mode&modeMask
		if err := a.setter.set(target{dirfd: fd, name: d.name, fd: -1}, &st, &m); err != nil {
			return err
		}
	}
	return setTimes(fd, d.name, &d.late.times)
}
