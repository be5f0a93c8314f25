package boltfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestChangeOnFullFilesystem(t *testing.T) {
	mnt := testfs.Btrfs(t, testfs.WithSize(256<<20))
	path := filepath.Join(mnt, "file.db")
	require.NoError(t, Ready(path, testfs.Patience))
	var space Space
	opts := bolt.Options{Timeout: testfs.Patience}
	require.NoError(t, space.Options(&opts))
	db, err := bolt.Open(path, 0o600, &opts)
	require.NoError(t, err)
	put := func(key string) {
		t.Helper()
		require.NoError(t, db.Update(func(tx *bolt.Tx) error {
			_ = space.Keep(tx)
			bucket, err := tx.CreateBucketIfNotExists([]byte("bucket"))
			require.NoError(t, err)
			return bucket.Put([]byte(key), bytes.Repeat([]byte("value"), 100))
		}))
	}
	put("first")
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, info.Size(), int64(reserve))
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)
	for i := range 50 {
		put(fmt.Sprint("key", i))
	}
	require.NoError(t, db.Close())
	require.NoError(t, Ready(path, testfs.Patience))
}

// TestReplace: a file that is not overwritten in place is copied, unless another process has it open.
func TestReplace(t *testing.T) {
	path := filepath.Join(testfs.Btrfs(t), "file.db")
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("bucket")); return err }))
	require.Error(t, Ready(path, 10*time.Millisecond), "it is open")
	assert.False(t, isInPlace(t, path))
	require.NoError(t, db.Close())
	for range 2 {
		require.NoError(t, Ready(path, testfs.Patience))
		assert.True(t, isInPlace(t, path))
	}
	db, err = bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *bolt.Tx) error { assert.NotNil(t, tx.Bucket([]byte("bucket"))); return nil }))
	require.NoError(t, db.Close())
}

func isInPlace(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	inPlace, err := btrfsctl.OverwritesInPlace(f)
	require.NoError(t, err)
	return inPlace
}
