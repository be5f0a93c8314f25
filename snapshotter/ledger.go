package snapshotter

import (
	bolt "go.etcd.io/bbolt"
)

// A ledger is a list of volumes in metadata.db, beside the snapshots. It is changed in the same transaction as they
// are. So at every moment the metadata tells the owner of each volume, or why it may be destroyed.
//
// Names of volumes are never used twice. So an entry that a rollback of the metadata brings back is about the same
// volume as then; docs/reference/on-disk-format.md says why each list is still right.
type ledger string

const (
	// making has volumes that a snapshot names and that may not be there yet. It is not an error if they are not.
	making ledger = "making"
	// copies has volumes that a Commit makes and that no snapshot names yet. Such a volume is sealed before one does.
	copies ledger = "copies"
	// thawing has volumes that a snapshot names and that may not exist yet. The value is the sealed volume that each
	// is a copy of, and that no snapshot names any more.
	thawing ledger = "thawing"
	// doomed has volumes that a snapshot named that was removed.
	doomed ledger = "doomed"
	// gone has volumes that were missing, with the snapshots that named them as JSON.
	gone ledger = "gone"
)

// ledgers is the bucket that holds the lists. containerd's own are beside it.
var ledgers = []byte("cowshed")

// put notes a volume.
func (l ledger) put(tx *bolt.Tx, volume, value string) error {
	all, err := tx.CreateBucketIfNotExists(ledgers)
	if err != nil {
		return err
	}
	list, err := all.CreateBucketIfNotExists([]byte(l))
	if err != nil {
		return err
	}
	return list.Put([]byte(volume), []byte(value))
}

// del forgets a volume, which may not be noted.
func (l ledger) del(tx *bolt.Tx, volume string) error {
	if list := l.bucket(tx); list != nil {
		return list.Delete([]byte(volume))
	}
	return nil
}

// has reports whether a volume is noted.
func (l ledger) has(tx *bolt.Tx, volume string) bool {
	list := l.bucket(tx)
	return list != nil && list.Get([]byte(volume)) != nil
}

// all lists the entries, by volume.
func (l ledger) all(tx *bolt.Tx) map[string]string {
	entries := make(map[string]string)
	if list := l.bucket(tx); list != nil {
		for cursor, k, v := newCursor(list); k != nil; k, v = cursor.Next() {
			entries[string(k)] = string(v)
		}
	}
	return entries
}

func newCursor(b *bolt.Bucket) (cursor *bolt.Cursor, k, v []byte) {
	cursor = b.Cursor()
	k, v = cursor.First()
	return cursor, k, v
}

func (l ledger) bucket(tx *bolt.Tx) *bolt.Bucket {
	all := tx.Bucket(ledgers)
	if all == nil {
		return nil
	}
	return all.Bucket([]byte(l))
}
