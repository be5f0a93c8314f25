package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// encoder turns changes into tar.
type encoder struct {
	ctx    context.Context
	ex     *exporter
	dirs   treeat.DirStack
	live   *liveFiles // nil: there are none
	xattrs xattrReader
	hdr    tar.Header

	out chan<- segment
	buf *[]byte // the segment being filled; nil: none
}

func newEncoder(ctx context.Context, ex *exporter) *encoder {
	return &encoder{ctx: ctx, ex: ex, dirs: treeat.DirStack{Root: ex.root}, live: newLiveFiles(ex.opts.Live)}
}

func (e *encoder) close() {
	e.dirs.Close()
	e.live.close()
}

// span encodes a span. After an error it ends early.
func (e *encoder) span(s *span) {
	defer close(s.out)
	e.out = s.out
	var err error
	for i := s.lo; i < s.hi && err == nil; i++ {
		if err = e.change(i); err != nil && !errors.Is(err, errStopped) {
			err = fmt.Errorf("%s: %w", treeat.Quote(e.ex.changes[i].Path), err)
		}
	}
	if err == nil {
		err = e.flush()
	}
	if err != nil {
		_ = e.send(segment{err: err})
	}
	if e.buf != nil {
		e.ex.putSegment(e.buf)
		e.buf = nil
	}
}

// send hands a segment to the writer.
func (e *encoder) send(s segment) error {
	select {
	case e.out <- s:
		return nil
	case <-e.ctx.Done():
		return errStopped
	}
}

// flush sends the encoded bytes.
func (e *encoder) flush() error {
	if e.buf == nil || len(*e.buf) == 0 {
		return nil
	}
	b := e.buf
	e.buf = nil
	return e.send(segment{bytes: b})
}

// room returns free space of the current segment, at least one byte. The method used adds the used part to the
// segment.
func (e *encoder) room() ([]byte, error) {
	if e.buf != nil && len(*e.buf) == cap(*e.buf) {
		if err := e.flush(); err != nil {
			return nil, err
		}
	}
	if e.buf == nil {
		e.buf = e.ex.segment()
	}
	b := *e.buf
	return b[len(b):cap(b)], nil
}

func (e *encoder) used(n int) { *e.buf = (*e.buf)[:len(*e.buf)+n] }

// Write implements io.Writer, for the headers.
func (e *encoder) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		b, err := e.room()
		if err != nil {
			return 0, err
		}
		n := copy(b, rest)
		e.used(n)
		rest = rest[n:]
	}
	return len(p), nil
}

// zeros encodes n zeros.
func (e *encoder) zeros(n int64) error {
	for n > 0 {
		b, err := e.room()
		if err != nil {
			return err
		}
		b = b[:min(n, int64(len(b)))]
		clear(b)
		e.used(len(b))
		n -= int64(len(b))
	}
	return nil
}

// header encodes e.hdr.
func (e *encoder) header() error {
	return writeHeader(e, &e.hdr)
}

// change encodes one change.
func (e *encoder) change(index int) error {
	c := &e.ex.changes[index]
	if c.Path == "/" {
		return nil
	}
	i := strings.LastIndexByte(c.Path, '/')
	parent, base := c.Path[:i], c.Path[i+1:]
	reserved := strings.HasPrefix(base, archive.WhiteoutPrefix)
	if c.Kind == archive.ChangeDelete {
		if reserved {
			return nil // no layer had it
		}
		return e.whiteout(parent, base)
	}
	if isCowshedName(c.Path[1:]) {
		return ErrCowshedName
	}
	dirfd, err := e.dirs.Dir(parent)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := treeat.Lstat(dirfd, base, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil
	}
	if reserved {
		return ErrReservedName
	}
	return e.file(index, treeat.File{Dir: dirfd, Name: base, FD: -1}, &st)
}

func (e *encoder) whiteout(parent, base string) error {
	var mtime int64
	if e.ex.opts.Epoch != nil {
		mtime = e.ex.opts.Epoch.Unix()
	}
	e.hdr = tar.Header{
		Typeflag: tar.TypeReg,
		Name:     strings.TrimPrefix(parent+"/", "/") + archive.WhiteoutPrefix + base,
		ModTime:  time.Unix(mtime, 0),
		Format:   tar.FormatPAX,
	}
	return e.header()
}

// file encodes an existing file.
func (e *encoder) file(index int, t treeat.File, st *unix.Stat_t) error {
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFREG {
		var err error
		t.FD, err = treeat.Open(t.Dir, t.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		defer unix.Close(t.FD)
	}
	if err := e.describe(e.ex.changes[index].Path[1:], t, st); err != nil {
		return err
	}
	if kind == unix.S_IFDIR || st.Nlink < 2 {
		return e.entry(t, st)
	}

	if err := e.flush(); err != nil {
		return err
	}
	key := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // narrower on some platforms
	link := e.hdr
	if err := e.send(segment{link: &link, key: key}); err != nil {
		return err
	}
	if !e.ex.isLink(key, index) {
		if err := e.entry(t, st); err != nil {
			return err
		}
		if err := e.flush(); err != nil {
			return err
		}
	}
	return e.send(segment{end: true})
}

// entry encodes the header and the data.
func (e *encoder) entry(t treeat.File, st *unix.Stat_t) error {
	if err := e.header(); err != nil {
		return err
	}
	if e.hdr.Size == 0 {
		return nil
	}
	src := source{fd: t.FD, live: e.live.open("/"+e.hdr.Name, st), st: st, files: e.live}
	defer src.close()
	if err := e.data(&src); err != nil {
		return err
	}
	return e.zeros(-e.hdr.Size & (blockSize - 1))
}

// describe makes e.hdr the header of a file.
func (e *encoder) describe(name string, t treeat.File, st *unix.Stat_t) error {
	uid, gid, err := e.ex.opts.IDMap.ToContainer(int(st.Uid), int(st.Gid))
	if err != nil {
		return err
	}
	mtime := int64(st.Mtim.Sec) //nolint:unconvert // narrower on some platforms
	if epoch := e.ex.opts.Epoch; epoch != nil {
		mtime = min(mtime, epoch.Unix())
	}
	e.hdr = tar.Header{
		Name:    name,
		Mode:    int64(st.Mode & modeMask),
		Uid:     uid,
		Gid:     gid,
		ModTime: time.Unix(mtime, 0),
		Format:  tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.hdr.Typeflag, e.hdr.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		e.hdr.Typeflag = tar.TypeDir
		e.hdr.Name += "/"
	case unix.S_IFLNK:
		e.hdr.Typeflag = tar.TypeSymlink
		e.hdr.Linkname, err = treeat.Readlink(t.Dir, t.Name)
		if err != nil {
			return fmt.Errorf("read link: %w", err)
		}
	case unix.S_IFIFO:
		e.hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		e.hdr.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			e.hdr.Typeflag = tar.TypeBlock
		}
		rdev := uint64(st.Rdev) //nolint:unconvert // narrower on some platforms
		e.hdr.Devmajor, e.hdr.Devminor = int64(unix.Major(rdev)), int64(unix.Minor(rdev))
	default:
		return fmt.Errorf("unknown type of file, mode %#o", st.Mode)
	}
	e.hdr.PAXRecords, err = e.xattrs.records(t, &e.ex.opts)
	return err
}

// data encodes the content of a file. Holes are not read.
func (e *encoder) data(src *source) error {
	fd, st := src.fd, src.st
	if st.Blocks*blockSize >= st.Size || st.Size < holeUnit {
		return e.read(src, 0, st.Size)
	}
	for at := int64(0); at < st.Size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO:
			data = st.Size
		case err == unix.EINVAL || err == unix.EOPNOTSUPP:
			return e.read(src, at, st.Size) // the filesystem does not tell
		case err != nil:
			return fmt.Errorf("seek: %w", err)
		}
		data = min(data, st.Size)
		if err := e.zeros(data - at); err != nil {
			return err
		}
		if data == st.Size {
			return nil
		}
		if at, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("seek: %w", err)
		}
		at = min(at, st.Size)
		if err := e.read(src, data, at); err != nil {
			return err
		}
	}
	return nil
}

// read encodes the bytes of a file from one offset to another.
func (e *encoder) read(src *source, from, to int64) error {
	for from < to {
		b, err := e.room()
		if err != nil {
			return err
		}
		b = b[:min(to-from, int64(len(b)))]
		n, err := src.pread(b, from)
		switch {
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n == 0:
			return fmt.Errorf("read: the file was %d bytes long and is %d now: %w", e.hdr.Size, from, io.ErrUnexpectedEOF)
		}
		e.used(n)
		from += int64(n)
	}
	return nil
}
