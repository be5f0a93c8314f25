package writelog

import (
	"errors"
	"fmt"
	"io"
)

// Target is the file to which a log is replayed. It must read as zeros where nothing was written.
type Target interface{ io.WriterAt }

// Disk is a part of a disk whose writes were logged, as it was at a moment between two entries of the log.
type Disk struct {
	log    *Reader
	target Target
	from   int64 // the first byte of the disk that is replayed, as byte 0 of target
	to     int64
	done   int // entries
}

// NewDisk returns the disk before the first entry. Writes from byte from up to byte to go to target, which is empty.
func NewDisk(log io.Reader, target Target, from, to int64) (*Disk, error) {
	r, err := NewReader(log)
	if err != nil {
		return nil, err
	}
	return &Disk{log: r, target: target, from: from, to: to}, nil
}

// Replay replays the log up to its first n entries. n must not be less than before.
func (d *Disk) Replay(n int) error {
	for ; d.done < n; d.done++ {
		e, err := d.log.Next()
		if err != nil {
			return fmt.Errorf("entry %d: %w", d.done, err)
		}
		if err := d.apply(e); err != nil {
			return fmt.Errorf("entry %d: %w", d.done, err)
		}
	}
	return nil
}

// apply replays the entry. A discarded range is left as it is, which is one of the contents that it may have.
func (d *Disk) apply(e Entry) error {
	if e.Flags&(Discard|Mark) != 0 {
		return nil
	}
	start, end := max(e.Offset, d.from), min(e.Offset+e.Length, d.to)
	if start >= end {
		return nil
	}
	if _, err := io.CopyN(io.Discard, d.log, start-e.Offset); err != nil {
		return err
	}
	_, err := io.CopyN(io.NewOffsetWriter(d.target, start-d.from), d.log, end-start)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
