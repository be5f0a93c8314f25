package boltfile

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	errbolt "go.etcd.io/bbolt/errors"
)

// ErrDamaged is the error of a file that bolt cannot make sense of. It is an errdefs.ErrDataLoss.
var ErrDamaged = fmt.Errorf("the file is damaged: %w", errdefs.ErrDataLoss)

// Ready makes the file, if need be, looks at all of it, and makes sure that there is room in it. It waits for another
// process that has it open, as long as timeout; then the error is bolt's ErrTimeout. ErrDamaged: bolt would panic, or
// worse, at what is there.
func Ready(path string, timeout time.Duration) error {
	if err := makeReady(path); err != nil {
		return err
	}
	return open(path, bolt.Options{Timeout: timeout, NoStatistics: true}, func(db *bolt.DB, space *Space) error {
		if err := db.View(check); err != nil {
			return err
		}
		tx, err := db.Begin(true)
		if err != nil {
			return err
		}
		_ = space.Keep(tx) // for want of space, it tries again with each change
		return tx.Rollback()
	})
}

// Read calls f with a file that nobody has open, as far as bolt can read it. A panic in f does not close it.
func Read(path string, timeout time.Duration, f func(tx *bolt.Tx) error) error {
	return open(path, bolt.Options{Timeout: timeout, NoStatistics: true, ReadOnly: true}, func(db *bolt.DB, _ *Space) error {
		return db.View(f)
	})
}

func open(path string, opts bolt.Options, f func(*bolt.DB, *Space) error) error {
	var space Space
	_ = space.Options(&opts) // never fails
	opened := false
	err := Guard(func() error {
		db, err := bolt.Open(path, 0o600, &opts)
		if err != nil {
			return err
		}
		opened = true
		err = Guard(func() error { return f(db, &space) })
		if errors.Is(err, ErrDamaged) {
			return err // a transaction may be left open, and bolt would wait for it
		}
		return errors.Join(err, db.Close())
	})
	switch {
	case errors.Is(err, ErrDamaged):
		return errors.Join(err, space.abandon())
	case !opened && isInvalid(err):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
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
	// What follows runs on another goroutine, on which a page that is not there ends the process.
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
