package treediff

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// chunkSize is how many bytes of a file are read at once.
const chunkSize = 256 << 10

// sameBytes reports whether a regular file has the same bytes in both sides of the directory d. It reads up to the
// first difference, and no holes that both have. A file that has changed a moment ago differs.
func (w *worker) sameBytes(d *dir, name string) (bool, error) {
	a, err := w.openContent(d, top, name)
	if a < 0 {
		return false, err
	}
	defer unix.Close(a)
	b, err := w.openContent(d, base, name)
	if b < 0 {
		return false, err
	}
	defer unix.Close(b)
	if w.st[top].Size != w.st[base].Size {
		return false, nil
	}

	end := int64(w.st[top].Size)
	for pos := int64(0); ; {
		if w.stopped.Load() {
			return false, errStopped
		}
		pos = min(nextData(a, pos, end), nextData(b, pos, end))
		if pos >= end {
			return true, nil
		}
		var n [2]int
		for s, fd := range [2]int{a, b} {
			if n[s], err = readAt(fd, w.content[s], pos); err != nil {
				return false, w.fail("read", side(s), name, err)
			}
		}
		if n[top] == 0 || !bytes.Equal(w.content[top][:n[top]], w.content[base][:n[base]]) {
			return false, nil
		}
		pos += int64(n[top])
	}
}

// openContent opens one side of a regular file for reading and describes it in w.st. The descriptor is
// negative, also without an error, if there is no regular file of that name.
func (w *worker) openContent(d *dir, s side, name string) (int, error) {
	fd, err := openFile(d.fd[s], name)
	if err != nil {
		if noSuch(err) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
			return -1, nil
		}
		return -1, w.fail("open", s, name, err)
	}
	if err := statFd(fd, &w.st[s]); err != nil {
		unix.Close(fd)
		return -1, w.fail("stat", s, name, err)
	}
	if kindOf(&w.st[s]) != unix.DT_REG {
		unix.Close(fd)
		return -1, nil
	}
	if w.content[s] == nil {
		w.content[s] = make([]byte, chunkSize)
	}
	return fd, nil
}

// nextData returns where data begin at or after pos, or end if there are none. Where the filesystem does
// not tell, all is data.
func nextData(fd int, pos, end int64) int64 {
	next, err := unix.Seek(fd, pos, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return end
	case err != nil:
		return pos
	}
	return next
}

// readAt fills buf from the file at pos. It reads less only at the end of the file.
func readAt(fd int, buf []byte, pos int64) (int, error) {
	done := 0
	for done < len(buf) {
		n, err := eintr.Retry(func() (int, error) { return unix.Pread(fd, buf[done:], pos+int64(done)) })
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// sameTarget reports whether a symbolic link has the same target in both sides of the directory d. A link
// that is not one any more differs.
func (w *worker) sameTarget(d *dir, name string) (bool, error) {
	var target [2][unix.PathMax]byte
	var n [2]int
	for s := range target {
		var err error
		if n[s], err = unix.Readlinkat(d.fd[s], name, target[s][:]); err != nil {
			if noSuch(err) || errors.Is(err, unix.EINVAL) {
				return false, nil
			}
			return false, w.fail("readlink", side(s), name, err)
		}
	}
	return bytes.Equal(target[top][:n[top]], target[base][:n[base]]), nil
}
