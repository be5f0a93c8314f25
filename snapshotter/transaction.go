package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/boltfile"
)

// look calls do with a transaction that changes nothing. ctx carries it, for package storage.
func (s *Snapshotter) look(ctx context.Context, do func(ctx context.Context, tx *bolt.Tx) error) error {
	return s.transact(ctx, false, do)
}

// change calls do with a transaction, which is durable when change returns.
//
// An error of the transaction itself says little: it may have been written all the same. So do is called once more
// then, and must look whether its change has been made; its error is that of change. Before that the reserved space
// is given up on a full filesystem.
func (s *Snapshotter) change(ctx context.Context, do func(ctx context.Context, tx *bolt.Tx) error) error {
	err := s.transact(ctx, true, do)
	var unknown *commitError
	if !errors.As(err, &unknown) {
		return err
	}
	s.log.Warn("snapshotter: metadata could not be written, and is written again", "error", err)
	waits := []time.Duration{0}
	if fault.IsFull(err) && s.reserve.giveUp(s.log) {
		waits = []time.Duration{0, time.Second, 5 * time.Second} // ZFS has the space some seconds later
	}
	for _, wait := range waits {
		time.Sleep(wait) // whether the client waits or not: without space it cannot try again
		if err = s.transact(ctx, true, do); !fault.IsFull(err) {
			break
		}
	}
	return err
}

// commitError is the error of a transaction that may or may not have been written.
type commitError struct{ error }

func (e *commitError) Unwrap() error { return e.error }

func (s *Snapshotter) transact(ctx context.Context, write bool, do func(ctx context.Context, tx *bolt.Tx) error) error {
	ctx, transactor, err := s.meta.TransactionContext(ctx, write)
	if err != nil {
		return err
	}
	tx, ok := transactor.(*bolt.Tx)
	if !ok {
		return errors.Join(fault.New(errdefs.ErrNotImplemented, "transactions of %T", transactor), transactor.Rollback())
	}
	var stale stale
	ended := false
	err = boltfile.Guard(func() error {
		if err := do(ctx, tx); err != nil || !write {
			return err
		}
		stale = s.takeStale()
		if err := stale.forget(tx); err != nil {
			return err
		}
		_ = s.space.Keep(tx) // for want of space: the present space may do
		ended = true
		if err := s.commitTx(tx); err != nil {
			return &commitError{fmt.Errorf("write %s: %w", metadataName, err)}
		}
		return nil
	})
	if err != nil {
		s.putBackStale(stale)
	}
	if errors.Is(err, boltfile.ErrDamaged) {
		err = s.damaged(err)
	}
	if !ended {
		err = errors.Join(err, boltfile.Guard(tx.Rollback))
	}
	return err
}

// damaged adds advice to an error of damage.
func (s *Snapshotter) damaged(err error) error {
	return fmt.Errorf("%s: %w; stop cowshed serve and run: cowshed doctor --containerd --repair", filepath.Join(s.root, metadataName), err)
}

// stale has outdated entries of the ledgers. The next change deletes them, since nothing depends on them.
type stale struct{ made, destroyed []string }

func (s *Snapshotter) takeStale() stale {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.stale
	s.stale = stale{}
	return taken
}

func (s *Snapshotter) putBackStale(old stale) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale.made = append(s.stale.made, old.made...)
	s.stale.destroyed = append(s.stale.destroyed, old.destroyed...)
}

// forgetStale deletes outdated entries that no other change has deleted.
func (s *Snapshotter) forgetStale() error {
	s.mu.Lock()
	some := len(s.stale.made)+len(s.stale.destroyed) > 0
	s.mu.Unlock()
	if !some {
		return nil
	}
	return s.change(s.ctx, func(context.Context, *bolt.Tx) error { return nil })
}

func (st stale) forget(tx *bolt.Tx) error {
	for _, volume := range st.made {
		if err := making.del(tx, volume); err != nil {
			return err
		}
	}
	for _, volume := range st.destroyed {
		if err := errors.Join(doomed.del(tx, volume), copies.del(tx, volume)); err != nil {
			return err
		}
	}
	return nil
}

// openMeta opens the metadata. If the metadata cannot be used, the error says why.
func (s *Snapshotter) openMeta() error {
	path := filepath.Join(s.root, metadataName)
	err := boltfile.Ready(path, lockTimeout)
	if errors.Is(err, boltfile.ErrDamaged) {
		return s.damaged(err)
	}
	if err != nil {
		return err
	}
	s.meta, err = storage.NewMetaStore(path, withLockTimeout, s.space.Options)
	return err
}
