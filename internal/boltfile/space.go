package boltfile

import (
	"fmt"
	"os"
	"sync"

	bolt "go.etcd.io/bbolt"
)

const (
	// reserve is how much of the file is written before it is needed.
	reserve = 4 << 20
	// least is how much of that is left when more is written: some twenty changes.
	least = 1 << 20
)

// Space keeps a file longer than bolt's use of it. It is safe for concurrent use.
type Space struct {
	mu   sync.Mutex
	file *os.File
	size int64
}

// Options makes bolt open the file in a way that Space knows it.
func (s *Space) Options(o *bolt.Options) error {
	o.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, mode)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.file, s.size = f, 0
		return f, nil
	}
	return nil
}

// Keep makes the file longer if need be, in a write transaction. Without space for that it does nothing: the present
// space may do.
func (s *Space) Keep(tx *bolt.Tx) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := tx.Size()
	if s.size-used >= least {
		return nil
	}
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if s.size = info.Size(); s.size-used >= least {
		return nil
	}
	if err := writeZeros(s.file, s.size, used+reserve); err != nil {
		return err
	}
	s.size = used + reserve
	return nil
}

// writeZeros makes the file longer, durably, by data that takes up space.
func writeZeros(f *os.File, from, to int64) error {
	zeros := make([]byte, 1<<20)
	for from < to {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return fmt.Errorf("reserve space in %s: %w", f.Name(), err)
		}
		from += int64(n)
	}
	return f.Sync()
}
