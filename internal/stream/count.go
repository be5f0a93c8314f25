package stream

import "io"

// CountReads returns a reader of r that tells add how many bytes each Read has returned.
func CountReads(r io.Reader, add func(n int64)) io.Reader { return countingReader{r, add} }

type countingReader struct {
	r   io.Reader
	add func(n int64)
}

// Read implements io.Reader.
func (c countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 {
		c.add(int64(n))
	}
	return n, err
}

// CountWrites returns a writer to w that tells add how many bytes each Write has written.
func CountWrites(w io.Writer, add func(n int64)) io.Writer { return countingWriter{w, add} }

type countingWriter struct {
	w   io.Writer
	add func(n int64)
}

// Write implements io.Writer.
func (c countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if n > 0 {
		c.add(int64(n))
	}
	return n, err
}
