package dockerroot

import (
	"errors"
	"os"
	"sync"

	"github.com/cowshed/cowshed/internal/flock"
)

// held are the locks that keep engines out.
type held struct {
	mu    sync.Mutex
	files map[string]*os.File
}

// hold keeps a locked file, in place of an earlier one of the same name.
func (h *held) hold(name string, file *os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.files[name]
	if h.files == nil {
		h.files = make(map[string]*os.File)
	}
	h.files[name] = file
	if before == nil {
		return nil
	}
	return flock.Release(before)
}

// release gives all locks back.
func (h *held) release() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, file := range h.files {
		errs = append(errs, flock.Release(file))
	}
	h.files = nil
	return errors.Join(errs...)
}
