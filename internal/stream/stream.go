// Package stream turns a function that writes into a reader.
package stream

import (
	"context"
	"io"
)

type reader struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

// New runs write in a goroutine and returns what it writes. write releases all that it holds before it
// returns; its error is what the reader gets in place of io.EOF. Closing the reader cancels the context of
// write, if it is still at work, and waits until it has returned.
func New(ctx context.Context, write func(ctx context.Context, w io.Writer) error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	r := &reader{PipeReader: pr, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer cancel()
		_ = pw.CloseWithError(write(ctx, pw)) // always nil
	}()
	return r
}

// Close stops the writer and waits for it.
func (r *reader) Close() error {
	r.cancel()
	err := r.PipeReader.Close()
	<-r.done
	return err
}
