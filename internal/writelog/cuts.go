package writelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// BlockSize is the size of the block that [Block] returns.
const BlockSize = 4096

var blockMagic = []byte("cowshed writelog")

// Block returns a block that says n. Written to an otherwise unused place of the disk, it tells [Cuts] the progress
// by then: blklogwrites has no marks. It need not be flushed.
func Block(n uint64) []byte {
	block := make([]byte, BlockSize)
	binary.LittleEndian.PutUint64(block[copy(block, blockMagic):], n)
	return block
}

// Cut is a moment at which the power may have been cut, with the disk's content then.
type Cut struct {
	// Entries is how many entries of the log are on the disk. Later entries are not.
	Entries int
	// Written is the last block that was written before the last of these entries; 0: no block. Operations that began
	// after that cannot have left anything.
	Written uint64
	// Acknowledged is the last block that was written before the power may have been cut at the latest: before the
	// next flush, or before the end of the log. Operations acknowledged by then must be on the disk.
	Acknowledged uint64
	// Between: the last of the entries is no flush, but a write between two flushes.
	Between bool
}

// Cuts reads a log and returns the moment after each flush, and one between each two flushes that have writes
// between them. at is where blocks were written. Returns an error that wraps errors.ErrUnsupported if the disk had
// writes that needed no flush (FUA).
func Cuts(log io.Reader, at int64) ([]Cut, error) {
	r, err := NewReader(log)
	if err != nil {
		return nil, err
	}
	var cuts []Cut
	var since []Cut // after each write since the last flush
	last := uint64(0)
	acknowledge := func() {
		for i := len(cuts) - 1; i >= 0 && cuts[i].Acknowledged == 0; i-- {
			cuts[i].Acknowledged = last
			if !cuts[i].Between {
				break
			}
		}
	}
	for entries := 1; ; entries++ {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			acknowledge()
			return cuts, nil
		}
		if err != nil {
			return nil, err
		}
		switch {
		case e.Flags&FUA != 0:
			return nil, fmt.Errorf("entry %d is a write with FUA: %w", entries, errors.ErrUnsupported)
		case e.Flags&Flush != 0:
			if n := len(since); n > 1 {
				cuts = append(cuts, since[n/2-1])
			}
			acknowledge()
			cuts = append(cuts, Cut{Entries: entries, Written: last})
			since = nil
		case e.Flags&(Discard|Mark) != 0:
		case e.Offset == at && e.Length == BlockSize:
			if last, err = readBlock(r); err != nil {
				return nil, err
			}
		default:
			since = append(since, Cut{Entries: entries, Written: last, Between: true})
		}
	}
}

func readBlock(r io.Reader) (uint64, error) {
	var block [BlockSize]byte
	if _, err := io.ReadFull(r, block[:]); err != nil {
		return 0, err
	}
	rest, ok := bytes.CutPrefix(block[:], blockMagic)
	if !ok {
		return 0, fmt.Errorf("the place for marks was given something else: %w", ErrFormat)
	}
	return binary.LittleEndian.Uint64(rest), nil
}
