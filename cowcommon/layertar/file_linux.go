package layertar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

// holeUnit is the least run of zeros, and its alignment, that becomes a hole. Less would cost the filesystem
// more to keep track of than to store.
const holeUnit = 64 << 10

// putFile has a regular file made with the next size bytes of r.
func (a *applier) putFile(d *dir, name string, st *unix.Stat_t, m meta, size int64, r io.Reader) error {
	j := job{name: name, meta: m, size: size, index: a.es.index, entry: a.es.name}
	switch st.Mode & unix.S_IFMT {
	case 0:
	case unix.S_IFDIR, unix.S_IFLNK:
		// Paths may lead through it.
		if err := a.remove(d, name, st.Mode); err != nil {
			return err
		}
	default:
		a.overwrite(d, name)
		j.replace = true
	}
	var err error
	if size <= smallFile {
		j.data, err = a.pool.room(int(size))
	} else {
		// A batch of its own: its data is in other buffers.
		err = a.pool.flush()
	}
	if err != nil {
		return err
	}
	if size > smallFile {
		j.data = a.pool.chunk()[:min(size, chunkBytes)]
	}
	if _, err := io.ReadFull(r, j.data); err != nil {
		return readError(err)
	}
	j.dir, err = a.dirs.hold(d)
	if err != nil {
		return err
	}
	j.dropACL = d.handsDownACL(j.dir.fd)
	if size > chunkBytes {
		j.more = make(chan []byte, chunksAhead)
	}
	d.wrote(name, a.pool.add(j))
	if size <= smallFile {
		return nil
	}
	if err := a.pool.flush(); err != nil {
		return err
	}
	if j.more == nil {
		return nil
	}
	return a.feed(j.more, size-chunkBytes, r)
}

// feed reads the rest of a large file for the worker that writes it.
func (a *applier) feed(more chan<- []byte, size int64, r io.Reader) error {
	defer close(more)
	for size > 0 {
		b := a.pool.chunk()[:min(size, chunkBytes)]
		if _, err := io.ReadFull(r, b); err != nil {
			err = readError(err)
			// The worker must not take this for the end of the file.
			a.pool.cancel(err)
			return err
		}
		select {
		case more <- b:
		case <-a.pool.ctx.Done():
			return a.pool.failure()
		}
		size -= int64(len(b))
	}
	return nil
}

// readError makes the end of the input in the middle of a file an error.
func readError(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read data: %w", err)
}

// createFile makes an empty regular file and opens it, in the first stage of the pool.
func (a *applier) createFile(j *job) error {
	if j.replace {
		if err := unix.Unlinkat(j.dir.fd, j.name, 0); err != nil {
			return fmt.Errorf("replace: %w", err)
		}
	}
	fd, err := treeat.Open(j.dir.fd, j.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, j.meta.mode&permMask)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	j.fd = fd
	return nil
}

// fillFile gives a new file its content and attributes and closes it, in the second stage.
func (a *applier) fillFile(ctx context.Context, j *job) error {
	err := a.writeFile(ctx, j)
	if cerr := unix.Close(j.fd); err == nil && cerr != nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	j.fd = -1
	return err
}

// writeFile writes the content of an open file, and its attributes.
func (a *applier) writeFile(ctx context.Context, j *job) error {
	if err := a.writeData(ctx, j); err != nil {
		return err
	}
	t := treeat.File{Dir: j.dir.fd, Name: j.name, FD: j.fd}
	if j.dropACL {
		if err := dropACL(t); err != nil {
			return err
		}
	}
	// The owner and mode that the kernel set depend on the umask, on setgid directories and on mount options.
	var st unix.Stat_t
	if err := unix.Fstat(j.fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := a.setter.set(t, &st, &j.meta); err != nil {
		return err
	}
	return a.setter.setTimes(t, &j.meta.times)
}

// writeData writes the content of a file. There is no preallocation: filesystems that allocate when they write back
// see the whole file by then, and btrfs would not compress preallocated space.
func (a *applier) writeData(ctx context.Context, j *job) error {
	if j.size <= smallFile {
		return writeFull(j.fd, j.data, 0)
	}
	w := holeWriter{fd: j.fd}
	chunk := j.data
	for chunk != nil {
		err := w.write(chunk)
		a.pool.putChunk(chunk)
		if err != nil {
			return err
		}
		if j.more == nil {
			break
		}
		select {
		case chunk = <-j.more: // nil when it is closed
		case <-ctx.Done():
			return errStopped
		}
	}
	if w.at < j.size {
		return errStopped // the reader gave up, and has said why
	}
	return w.end()
}

// holeWriter writes a file from its beginning, leaving holes where there are only zeros.
type holeWriter struct {
	fd   int
	at   int64
	hole bool // the end of the file is a hole
}

var zeros [holeUnit]byte

// write takes the next bytes, which begin at a multiple of holeUnit.
func (w *holeWriter) write(b []byte) error {
	for len(b) > 0 {
		n := 0
		for n < len(b) {
			unit := b[n:min(n+holeUnit, len(b))]
			if bytes.Equal(unit, zeros[:len(unit)]) {
				break
			}
			n += len(unit)
		}
		if n > 0 {
			if err := writeFull(w.fd, b[:n], w.at); err != nil {
				return err
			}
			w.hole = false
		} else {
			n = min(holeUnit, len(b))
			w.hole = true
		}
		w.at += int64(n)
		b = b[n:]
	}
	return nil
}

// end gives the file its size.
func (w *holeWriter) end() error {
	if !w.hole {
		return nil
	}
	if err := eintr.Ignore(func() error { return unix.Ftruncate(w.fd, w.at) }); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

// writeFull writes all of b at an offset.
func writeFull(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := eintr.Retry(func() (int, error) { return unix.Pwrite(fd, b, at) })
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}
