package layertar

import (
	"io"
	"sync"
)

// readAheadChunks is the number of pieces that are read ahead.
const readAheadChunks = 4

// ReadAhead returns a reader of the content of r. A goroutine of its own reads r, in pieces of that many bytes and up
// to four of them ahead. It also writes all that it reads to each tee, such as the hash of a layer's DiffID. When the
// reader has returned io.EOF the tees have seen everything. An error of a tee is an error of the reader.
//
// Close ends the goroutine, waiting for a Read of r that is under way. It does not close r.
func ReadAhead(r io.Reader, piece int, tee ...io.Writer) io.ReadCloser {
	a := &readAhead{
		piece: piece,
		full:  make(chan chunk, readAheadChunks),
		free:  make(chan []byte, readAheadChunks),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	for range readAheadChunks {
		a.free <- nil
	}
	go a.run(r, tee)
	return a
}

type readAhead struct {
	piece int

	full chan chunk    // to the reader; closed after the chunk with an error
	free chan []byte   // from the reader; nil: to be allocated
	stop chan struct{} // closed by Close
	done chan struct{} // closed when the goroutine has ended

	cur  chunk // the chunk that the reader is at
	rest []byte
	once sync.Once
}

// chunk is a piece of the stream, or its end.
type chunk struct {
	buf []byte
	err error
}

func (a *readAhead) run(r io.Reader, tee []io.Writer) {
	defer close(a.done)
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		if buf == nil {
			buf = make([]byte, a.piece)
		}
		n, err := a.fill(r, buf[:a.piece])
		for _, w := range tee {
			if _, werr := w.Write(buf[:n]); werr != nil {
				n, err = 0, werr
				break
			}
		}
		a.full <- chunk{buf[:n], err} // has room for every chunk there is
		if err != nil {
			return
		}
	}
}

// fill reads at least half of buf, unless r ends or the reader is closed: a decompressor returns little at a time,
// and chunks bound the data that is read ahead.
func (a *readAhead) fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf)/2 && err == nil {
		select {
		case <-a.stop:
			return n, nil
		default:
		}
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read implements io.Reader.
func (a *readAhead) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf // has room for every chunk there is
			a.cur.buf = nil
		}
		c, ok := <-a.full
		if !ok {
			c.err = io.ErrClosedPipe
		}
		a.cur, a.rest = c, c.buf
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (a *readAhead) Close() error {
	a.once.Do(func() { close(a.stop) })
	<-a.done
	return nil
}
