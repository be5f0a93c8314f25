package cowcommon

import (
	"context"
	"io"
)

// tarReader is the reading end of a stream that a goroutine writes.
type tarReader struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

// newTarReader runs write in a goroutine and returns what it writes. An error of write, which has
// released all that it holds by then, ends the stream in place of io.EOF.
func newTarReader(ctx context.Context, write func(context.Context, io.Writer) error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	r := &tarReader{PipeReader: pr, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer cancel()
		_ = pw.CloseWithError(write(ctx, pw)) // never fails
	}()
	return r
}

// Close stops the writer, if it is still at work, and waits until it has released what it holds.
func (r *tarReader) Close() error {
	r.cancel()
	err := r.PipeReader.Close()
	<-r.done
	return err
}
