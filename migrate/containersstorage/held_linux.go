package containersstorage

import (
	"errors"
	"os"
	"sync"
)

// held are open files with locks of the source's.
type held struct {
	mu    sync.Mutex
	files map[string]*os.File
}

// of returns the file of that name that is held, nil if none is.
func (h *held) of(name string) *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.files[name]
}

// hold keeps a file. If another goroutine was faster, its file is kept instead.
func (h *held) hold(name string, file *os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.files[name] != nil {
		return file.Close()
	}
	if h.files == nil {
		h.files = make(map[string]*os.File)
	}
	h.files[name] = file
	return nil
}

// release gives all locks back: those of fcntl(2) for open files go with the file.
func (h *held) release() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, file := range h.files {
		errs = append(errs, file.Close())
	}
	h.files = nil
	return errors.Join(errs...)
}
