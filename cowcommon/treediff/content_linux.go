package treediff

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"
)

// chunkSize is how many bytes of a file are read at once.
const chunkSize = 256 << 10

// sameBytes reports whether a regular file has the same bytes in both sides of the directory d. It reads up
// to the first difference, and no holes that both have. A file that is not what it was a moment ago differs.
func (w *worker) sameBytes(d *dir, name string) (bool, error) {
	var fd [2]int
	for s := range fd {
		var err error
		if fd[s], err = openFile(d.fd[s], name); err != nil {
			if noSuch(err) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
				return false, nil
			}
			return false, w.fail("open", side(s), name, err)
		}
		defer unix.Close(fd[s])
		if err := statFd(fd[s], &w.st[s]); err != nil {
			return false, w.fail("stat", side(s), name, err)
		}
		if kindOf(&w.st[s]) != unix.DT_REG {
			return false, nil
		}
		if w.content[s] == nil {
			w.content[s] = make([]byte, chunkSize)
		}
	}
	if w.st[top].Size != w.st[base].Size {
		return false, nil
	}

	end := int64(w.st[top].Size)
	for pos := int64(0); ; {
		if w.stopped.Load() {
			return false, errStopped
		}
		pos = min(nextData(fd[top], pos, end), nextData(fd[base], pos, end))
		if pos >= end {
			return true, nil
		}
		var n [2]int
		for s := range fd {
			var err error
			if n[s], err = readAt(fd[s], w.content[s], pos); err != nil {
				return false, w.fail("read", side(s), name, err)
			}
		}
		if n[top] == 0 || !bytes.Equal(w.content[top][:n[top]], w.content[base][:n[base]]) {
			return false, nil
		}
		pos += int64(n[top])
	}
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
		n, err := unix.Pread(fd, buf[done:], pos+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
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
