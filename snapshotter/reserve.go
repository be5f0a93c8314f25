package snapshotter

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/cowshed/cowshed/internal/syncdir"
)

const (
	// reserveName is a file in the root that takes up space, which is given up when metadata cannot be written:
	// where files are not overwritten in place, as on ZFS, even removing a snapshot needs some.
	reserveName = "reserve"
	reserveSize = 4 << 20
)

// spaceReserve is that file. It is safe for concurrent use.
type spaceReserve struct {
	path string

	mu   sync.Mutex
	kept bool
}

// keep makes the file, if there is space for it.
func (r *spaceReserve) keep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept {
		return
	}
	if info, err := os.Stat(r.path); err == nil && info.Size() == reserveSize {
		r.kept = true
		return
	}
	if r.write() == nil {
		r.kept = true
		return
	}
	_ = os.Remove(r.path) // a part of it is not worth keeping
}

// write writes data that no filesystem compresses.
func (r *spaceReserve) write() error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	block := make([]byte, reserveSize)
	_, _ = rand.Read(block) // never fails
	_, err = f.Write(block)
	return errors.Join(err, f.Sync(), f.Close())
}

// giveUp deletes the file, and reports whether there was one.
func (r *spaceReserve) giveUp(log *slog.Logger) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = false
	err := errors.Join(os.Remove(r.path), syncdir.Sync(filepath.Dir(r.path)))
	switch {
	case err == nil:
		log.Warn("snapshotter: the filesystem is full, and the space reserved for removing snapshots is given up", "file", r.path)
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("snapshotter: the reserved space cannot be given up", "error", err)
	}
	return err == nil
}
