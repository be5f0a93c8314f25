package treecopy

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

const (
	// chunk is how much data is copied at once. Between two chunks the copy can be cancelled.
	chunk = 16 << 20
	// bufferSize is how much is read at once where the kernel does not copy by itself.
	bufferSize = 1 << 20

	// noCOW is FS_NOCOW_FL of the kernel's include/uapi/linux/fs.h.
	noCOW = 0x00800000
)

// data gives out, a new file, size bytes of the content of in.
func (c *copier) data(out, in int, size int64) error {
	if size == 0 {
		return nil
	}
	err := reflink(out, in)
	if err == nil {
		c.report.Reflinked += size
		return nil
	}
	if !notShared(err) {
		return fmt.Errorf("share data: %w", err)
	}
	return c.copyData(out, in, size)
}

// reflink makes out share the data of in.
func reflink(out, in int) error {
	share := func() error { return eintr.Ignore(func() error { return unix.IoctlFileClone(out, in) }) }
	err := share()
	if errors.Is(err, unix.EINVAL) && sameNoCOW(out, in) {
		err = share()
	}
	return err
}

// sameNoCOW gives the empty file out the attribute C of chattr(1) if in has it: btrfs shares no data between files with
// and without it.
func sameNoCOW(out, in int) bool {
	flags, err := unix.IoctlGetUint32(in, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&noCOW == 0 {
		return false
	}
	if flags, err = unix.IoctlGetUint32(out, unix.FS_IOC_GETFLAGS); err != nil {
		return false
	}
	return unix.IoctlSetPointerInt(out, unix.FS_IOC_SETFLAGS, int(flags|noCOW)) == nil
}

// notShared reports whether an error says that two files cannot share data (ioctl_ficlone(2)), so that it has to be
// copied.
func notShared(err error) bool {
	for _, errno := range []unix.Errno{unix.EXDEV, unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS, unix.EINVAL, unix.ETXTBSY, unix.EPERM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// copyData copies size bytes from in, and leaves the holes of in out.
func (c *copier) copyData(out, in int, size int64) error {
	for at := int64(0); at < size; {
		begin, end, err := segment(in, at, size)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = c.copyRange(out, in, begin, end)
		}
		if err != nil {
			return fmt.Errorf("copy data: %w", err)
		}
		at = end
	}
	// The end may be a hole.
	if err := eintr.Ignore(func() error { return unix.Ftruncate(out, size) }); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

// segment returns the next range of a file that holds data, io.EOF if there is none. Without SEEK_DATA all is data.
func segment(fd int, at, size int64) (begin, end int64, err error) {
	begin, err = unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, io.EOF
	case err != nil:
		return at, size, nil //nolint:nilerr // not every filesystem has it
	case begin >= size:
		return 0, 0, io.EOF
	}
	if end, err = unix.Seek(fd, begin, unix.SEEK_HOLE); err != nil {
		return 0, 0, err
	}
	return begin, min(end, size), nil
}

// copyRange copies a range to the same place.
func (c *copier) copyRange(out, in int, at, end int64) error {
	for at < end {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := c.copySome(out, in, at, int(min(end-at, chunk)))
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("it became shorter meanwhile: %w", io.ErrUnexpectedEOF)
		}
		at += int64(n)
		c.report.Copied += int64(n)
	}
	return nil
}

// copySome copies some bytes, by the kernel if it can. It returns 0 at the end of the file.
func (c *copier) copySome(out, in int, at int64, most int) (int, error) {
	if !c.noRange {
		from, to := at, at
		n, err := eintr.Retry(func() (int, error) { return unix.CopyFileRange(in, &from, out, &to, most, 0) })
		if err == nil && n > 0 {
			return n, nil
		}
		if err != nil && !notShared(err) {
			return 0, err
		}
		c.noRange = err != nil
	}
	if c.buf == nil {
		c.buf = make([]byte, bufferSize)
	}
	n, err := eintr.Retry(func() (int, error) { return unix.Pread(in, c.buf[:min(most, len(c.buf))], at) })
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	for done := 0; done < n; {
		written, err := eintr.Retry(func() (int, error) { return unix.Pwrite(out, c.buf[done:n], at+int64(done)) })
		if err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
		done += written
	}
	return n, nil
}
