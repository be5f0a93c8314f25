package layertar

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

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
	t := treeat.File{Dir: fd, Name: name, FD: -1}
	var st unix.Stat_t
	if err := treeat.Lstat(fd, name, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && d.handsDownACL(fd) {
		if err := dropACL(t); err != nil {
			return err
		}
		if err := treeat.Lstat(fd, name, &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
	}
	return a.setter.set(t, &st, m)
}

// put makes the file that an entry describes, in place of an existing file.
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
			return fmt.Errorf("hard link to %s: %w", treeat.Quote(hdr.Linkname), err)
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
	if m.moved {
		a.setter.move(hdr.Name)
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
	return a.setter.setTimes(treeat.File{Dir: fd, Name: name, FD: -1}, &m.times)
}

// makeNode makes a symbolic link, device or fifo. Devices that a user namespace may not make are left out,
// as they are by the peers.
func (a *applier) makeNode(fd int, name string, hdr *tar.Header, m *meta) (made bool, err error) {
	if hdr.Typeflag == tar.TypeSymlink {
		if err := unix.Symlinkat(hdr.Linkname, fd, name); err != nil {
			return false, fmt.Errorf("create symbolic link to %s: %w", treeat.Quote(hdr.Linkname), err)
		}
		return true, nil
	}
	var kind uint32
	switch hdr.Typeflag {
	case tar.TypeChar:
		kind = unix.S_IFCHR
	case tar.TypeBlock:
		kind = unix.S_IFBLK
	default:
		kind = unix.S_IFIFO
	}
	dev := 0
	if kind != unix.S_IFIFO {
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
			// Set at the end: new files in the directory must not inherit it.
			late.defaultACL = &x
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
			err = a.setter.set(treeat.File{Dir: fd, Name: name, FD: -1}, st, m)
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
		return fmt.Errorf("hard link to %s: %w", treeat.Quote(link), err)
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
		return fmt.Errorf("hard link to %s: %w", treeat.Quote(link), err)
	}
	d.wrote(name, 0)
	var now unix.Stat_t
	if err := treeat.Lstat(to.fd, name, &now); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := a.setter.set(treeat.File{Dir: to.fd, Name: name, FD: -1}, &now, m); err != nil {
		return err
	}
	if now.Mode&unix.S_IFMT == unix.S_IFLNK || (now.Atim == m.times[0] && now.Mtim == m.times[1]) {
		return nil
	}
	return a.setter.setTimes(treeat.File{Dir: to.fd, Name: name, FD: -1}, &m.times)
}
