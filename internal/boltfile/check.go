package boltfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	errbolt "go.etcd.io/bbolt/errors"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// ErrDamaged is the error of a file that bolt cannot make sense of. It is an errdefs.ErrDataLoss.
var ErrDamaged = fault.New(errdefs.ErrDataLoss, "the file is damaged")

// leastSize is that of a file with pages of 1 KiB, the smallest that bolt makes, and nothing in it.
const leastSize = 4 << 10

// Ready makes the file, if need be, and checks all of it. It waits for another process that has it open, as long as
// timeout; then the error is bolt's ErrTimeout. Returns ErrDamaged if bolt would panic, or worse, at the file's
// content.
func Ready(path string, timeout time.Duration) error {
	if err := makeReady(path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // bolt makes it
	case err != nil:
		return err
	case info.Size() == 0:
		return nil // bolt fills it
	case info.Size() < leastSize:
		return fmt.Errorf("%w: it has %d bytes only", ErrDamaged, info.Size())
	}
	var db *bolt.DB
	err = Guard(func() error {
		db, err = bolt.Open(path, 0, &bolt.Options{Timeout: timeout, NoStatistics: true, ReadOnly: true})
		return err
	})
	if isInvalid(err) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return err
	}
	return errors.Join(Guard(func() error { return db.View(check) }), db.Close())
}

func isInvalid(err error) bool {
	return errors.Is(err, errbolt.ErrInvalid) || errors.Is(err, errbolt.ErrChecksum) || errors.Is(err, errbolt.ErrVersionMismatch)
}

// check finds damage, in a guarded call.
func check(tx *bolt.Tx) error {
	info, err := os.Stat(tx.DB().Path())
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: it has %d bytes and not %d", ErrDamaged, info.Size(), tx.Size())
	}
	// The next steps run on another goroutine, on which a missing page ends the process.
	if err := touch(tx); err != nil {
		return err
	}
	var found error
	for err := range tx.Check() { // all of them, since it waits to be rid of them
		if found == nil {
			found = err
		}
	}
	if found != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, found)
	}
	return nil
}

// touch reads everything.
func touch(tx *bolt.Tx) error {
	return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return touchBucket(b) })
}

func touchBucket(b *bolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v != nil {
			return nil
		}
		child := b.Bucket(k)
		if child == nil {
			return fmt.Errorf("%w: bucket %q is not where it should be", ErrDamaged, k)
		}
		return touchBucket(child)
	})
}

// Guard makes a panic of bolt in f, and an access to a page that is not there, an ErrDamaged.
func Guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, reason)
		}
	}()
	return f()
}
