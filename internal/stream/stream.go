// Package stream turns a function that writes into a reader, and has readers and writers count and end.
package stream

import (
	"context"
	"errors"
	"io"
	"sync"
)

// reader hands over written data as it is, without a copy: each Write lends its bytes until the reader has used them
// up. In an io.Pipe the writer wakes up for each Read, and io.Copy reads 8 or 32 KiB at a time.
type reader struct {
	cancel func()
	lent   chan []byte   // from Write
	used   chan int      // to Write: how many of the lent bytes were read
	closed chan struct{} // closed by Close
	once   sync.Once
	done   chan struct{} // closed when both functions have returned

	writeErr, releaseErr error // the errors of both; to be read after done

	mu   sync.Mutex // held by the user of the lent bytes
	buf  []byte     // lent; nil: none
	read int        // of them
	told bool       // the errors have been returned to the reader
}

// New runs write in a goroutine and returns its output, and runs release when write has returned. The reader gets the
// errors of both in place of io.EOF. Closing the reader cancels the context of write, if it is still at work, and
// waits for both; it returns their errors unless the reader has had them. It is no error that Close has stopped
// write.
//
// The reader is an io.WriterTo too, which io.Copy uses: the destination is given the very pieces that write writes.
// Close then waits for a Write to the destination that is under way.
func New(ctx context.Context, write func(ctx context.Context, w io.Writer) error, release func() error) io.ReadCloser {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &reader{
		cancel: func() { cancel(errClosed) },
		lent:   make(chan []byte),
		used:   make(chan int),
		closed: make(chan struct{}),
		done:   make(chan struct{}),
	}
	go func() {
		defer close(r.done)
		defer cancel(nil)
		r.writeErr = write(ctx, writer{r})
		if r.writeErr != nil && r.stopped(ctx, r.writeErr) {
			r.writeErr = nil
		}
		r.releaseErr = release()
	}()
	return r
}

// errClosed is why the context of a writer ends when its reader is closed.
var errClosed = errors.New("the reader is closed")

// stopped reports whether it is for the closing of the reader that the writer returned err. Close ends Write before the context.
func (r *reader) stopped(ctx context.Context, err error) bool {
	return errors.Is(err, io.ErrClosedPipe) && r.isClosed() ||
		context.Cause(ctx) == errClosed && //nolint:errorlint // the cause itself
			(errors.Is(err, context.Canceled) || errors.Is(err, errClosed))
}

// end returns the errors of both functions, once. The caller holds mu, and they have returned.
func (r *reader) end() error {
	if r.told {
		return nil
	}
	r.told = true
	switch {
	case r.releaseErr == nil: // an error alone is returned as it is
		return r.writeErr
	case r.writeErr == nil:
		return r.releaseErr
	}
	return errors.Join(r.writeErr, r.releaseErr)
}

// writer takes the function's output.
type writer struct{ r *reader }

// Write implements io.Writer. It returns when p has been read, or with io.ErrClosedPipe.
func (w writer) Write(p []byte) (int, error) {
	r := w.r
	if r.isClosed() {
		return 0, io.ErrClosedPipe
	}
	if len(p) == 0 {
		return 0, nil
	}
	select {
	case r.lent <- p:
	case <-r.closed:
		return 0, io.ErrClosedPipe
	case <-r.done:
		return 0, io.ErrClosedPipe
	}
	n := <-r.used
	if n < len(p) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func (r *reader) isClosed() bool {
	select {
	case <-r.closed:
		return true
	default:
		return false
	}
}

// rest returns the rest of the lent bytes, at least one byte.
func (r *reader) rest() ([]byte, error) {
	if r.isClosed() {
		return nil, io.ErrClosedPipe
	}
	if r.buf == nil {
		select {
		case r.buf = <-r.lent:
		case <-r.closed:
			return nil, io.ErrClosedPipe
		case <-r.done:
			if r.isClosed() { // perhaps that has stopped the function, whose output is not complete then
				return nil, io.ErrClosedPipe
			}
			if err := r.end(); err != nil {
				return nil, err
			}
			return nil, io.EOF
		}
	}
	return r.buf[r.read:], nil
}

// use counts n bytes as read, and gives them back after the last.
func (r *reader) use(n int) {
	r.read += n
	if r.read == len(r.buf) {
		r.giveBack()
	}
}

func (r *reader) giveBack() {
	if r.buf != nil {
		n := r.read
		r.buf, r.read = nil, 0
		r.used <- n
	}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rest, err := r.rest()
	if err != nil {
		return 0, err
	}
	n := copy(p, rest)
	r.use(n)
	return n, nil
}

// WriteTo implements io.WriterTo.
func (r *reader) WriteTo(w io.Writer) (written int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		rest, err := r.rest()
		if err == io.EOF { //nolint:errorlint // a wrapped error is an error of the function
			return written, nil
		}
		if err != nil {
			return written, err
		}
		n, err := w.Write(rest)
		r.use(n)
		written += int64(n)
		if err != nil {
			return written, err
		}
		if n < len(rest) {
			return written, io.ErrShortWrite
		}
	}
}

// Close stops the writer and waits for it.
func (r *reader) Close() error {
	// First, so that a reader does not take the end of the function for the end of the output.
	r.once.Do(func() { close(r.closed) })
	r.cancel()
	r.mu.Lock()
	r.giveBack()
	r.mu.Unlock()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.end()
}
