package zfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
)

// counter is a count in a file, by which processes that have the same home open tell each other that something has
// changed.
//
// ZFS needs space to overwrite 8 bytes, and none to cut a file off. So without space the file gets shorter instead,
// byte by byte down from counterSize.
type counter struct{ file *os.File }

// counterSize is the size of the file while there is space. The bytes after the first 8 are a hole.
const counterSize = 4096

// count is the state of the counter. No state occurs twice.
type count struct {
	changes uint64 // the first 8 bytes, little-endian
	size    int64
}

func (c counter) read() (count, error) {
	var buf [8]byte
	_, err := c.file.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return count{}, fmt.Errorf("read change counter: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(c.file.Fd()), &stat); err != nil {
		return count{}, fmt.Errorf("read change counter: %w", err)
	}
	return count{binary.LittleEndian.Uint64(buf[:]), stat.Size}, nil
}

// add changes the count, and returns the counts before and after the change.
func (c counter) add(ctx context.Context) (before, now count, err error) {
	// Others hold this lock only for a few system calls. These may wait for a suspended pool.
	if err := flock.Exclusive(ctx, c.file); err != nil {
		return count{}, count{}, fmt.Errorf("change counter: %w", err)
	}
	defer func() { err = errors.Join(err, flock.Unlock(c.file)) }()
	if before, err = c.read(); err != nil {
		return count{}, count{}, err
	}
	now = count{before.changes + 1, counterSize}
	_, err = c.file.WriteAt(binary.LittleEndian.AppendUint64(nil, now.changes), 0)
	if err == nil {
		if before.size == counterSize {
			return before, now, nil
		}
		if err = c.file.Truncate(counterSize); err == nil || !fault.IsFull(err) {
			return before, now, err
		}
		now.size = before.size
		return before, now, nil
	}
	if fault.IsFull(err) && before.size > 8 {
		err = c.file.Truncate(before.size - 1)
		if fault.IsFull(err) { // ZFS cut the file off, and failed to set its time in a second step
			err = nil
		}
		if err == nil {
			now, err = c.read()
		}
		if err == nil && now == before {
			err = unix.ENOSPC
		}
	}
	if err != nil {
		return before, now, fmt.Errorf("write change counter: %w", err)
	}
	return before, now, nil
}
