package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/boltfile"
)

// salvaged has the readable parts of a damaged file.
type salvaged struct {
	snapshots map[string]wasSnapshot // by key, with the label that names their volume
	doomed    map[string]string
}

// salvage reads the readable parts: of the list of snapshots the parts before and after the damage, and each snapshot
// of these.
func salvage(ctx context.Context, file string, log *slog.Logger) salvaged {
	found := salvaged{snapshots: make(map[string]wasSnapshot), doomed: make(map[string]string)}
	if err := found.read(ctx, file); err != nil {
		log.Warn("snapshotter: not all of the damaged metadata can be read", "file", file, "read", len(found.snapshots), "error", err)
	}
	return found
}

func (s *salvaged) read(ctx context.Context, file string) error {
	store, err := storage.NewMetaStore(file, withLockTimeout, func(o *bolt.Options) error { o.ReadOnly = true; return nil })
	if err != nil {
		return err
	}
	var tx *bolt.Tx
	err = boltfile.Guard(func() error {
		inTx, transactor, err := store.TransactionContext(ctx, false)
		if err != nil {
			return err
		}
		ctx = inTx
		var ok bool
		if tx, ok = transactor.(*bolt.Tx); !ok {
			return fault.New(errdefs.ErrNotImplemented, "transactions of %T", transactor)
		}
		return nil
	})
	if err != nil {
		return err // whatever is open of it is left so, since closing it could wait for good
	}
	return errors.Join(
		boltfile.Guard(func() error { maps.Copy(s.doomed, doomed.all(tx)); return nil }),
		boltfile.Guard(func() error { return s.readAll(ctx, tx, (*bolt.Cursor).First, (*bolt.Cursor).Next) }),
		boltfile.Guard(func() error { return s.readAll(ctx, tx, (*bolt.Cursor).Last, (*bolt.Cursor).Prev) }),
		boltfile.Guard(tx.Rollback),
		boltfile.Guard(store.Close),
	)
}

// snapshotBucket is the bucket that package storage keeps the snapshots in, by key, or nil if it has never kept any.
func snapshotBucket(tx *bolt.Tx) *bolt.Bucket {
	bucket := tx.Bucket([]byte("v1"))
	if bucket != nil {
		bucket = bucket.Bucket([]byte("snapshots"))
	}
	return bucket
}

// readAll reads snapshots in one direction, as far as that goes.
func (s *salvaged) readAll(ctx context.Context, tx *bolt.Tx, first, next func(*bolt.Cursor) (k, v []byte)) error {
	bucket := snapshotBucket(tx)
	if bucket == nil {
		return nil
	}
	var errs []error
	cursor := bucket.Cursor()
	for k, _ := first(cursor); k != nil; k, _ = next(cursor) {
		key := string(k)
		if _, ok := s.snapshots[key]; ok {
			continue
		}
		errs = append(errs, boltfile.Guard(func() error { return s.readOne(ctx, key) }))
	}
	return errors.Join(errs...)
}

func (s *salvaged) readOne(ctx context.Context, key string) error {
	_, info, usage, err := storage.GetInfo(ctx, key)
	if err != nil {
		return fmt.Errorf("snapshot %q: %w", key, err)
	}
	s.snapshots[key] = wasSnapshot{key, info.Kind, info.Parent, info.Labels, usage}
	return nil
}
