package stream

import (
	"context"
	"io"
)

// ReadUntil returns a reader of r that fails, with the cause, once ctx has ended.
func ReadUntil(ctx context.Context, r io.Reader) io.Reader { return untilReader{ctx, r} }

type untilReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (u untilReader) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// WriteUntil returns a writer to w that fails, with the cause, once ctx has ended.
func WriteUntil(ctx context.Context, w io.Writer) io.Writer { return untilWriter{ctx, w} }

type untilWriter struct {
	ctx context.Context
	w   io.Writer
}

// Write implements io.Writer.
func (u untilWriter) Write(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.w.Write(p)
}
