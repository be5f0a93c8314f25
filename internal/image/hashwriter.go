package image

import (
	"hash"
	"io"
)

// hashWriter counts and hashes the bytes that it passes on.
type hashWriter struct {
	w    io.Writer
	hash hash.Hash
	task Task // nil: no one is told
	n    int64
}

// Write implements io.Writer.
func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.n += int64(n)
	_, _ = h.hash.Write(p[:n]) // never fails
	if h.task != nil {
		h.task.Add(int64(n))
	}
	return n, err
}
