package snapshotter

import (
	"context"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cowshed/cowshed/internal/contentstore"
)

// TestCompareLease has containerd's garbage collection run when a blob has been made that nothing refers to yet.
func TestCompareLease(t *testing.T) {
	blobs, err := local.NewStore(t.TempDir())
	require.NoError(t, err)
	h := newHost(t, Options{})
	file, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	db := metadata.NewDB(file, blobs, nil)
	manager := metadata.NewLeaseManager(db)
	store := dialContent(t, db.ContentStore())
	upper := h.prepare("upper", "")
	h.write("upper", "file", []byte("text"))

	isThere := func(t *testing.T, ctx context.Context, blob digest.Digest) bool {
		_, err := db.GarbageCollect(ctx)
		require.NoError(t, err)
		_, err = db.ContentStore().Info(ctx, blob)
		if !errdefs.IsNotFound(err) {
			require.NoError(t, err)
		}
		return err == nil
	}
	held := func(t *testing.T, ctx context.Context) []leases.Lease {
		all, err := manager.List(ctx)
		require.NoError(t, err)
		return all
	}

	t.Run("without", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "none")
		desc, err := NewDiffer(h.Snapshotter, store).Compare(ctx, nil, upper)
		require.NoError(t, err)
		assert.False(t, isThere(t, ctx, desc.Digest))
		assert.Empty(t, held(t, ctx))
	})
	t.Run("own", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "own")
		differ := NewDiffer(h.Snapshotter, store, WithLeases(manager))
		hold := 3 * time.Second
		differ.store = leasedStore{store, manager, hold, h.Snapshotter.log}
		for times := range 2 {
			begun := time.Now()
			desc, err := differ.Compare(ctx, nil, upper)
			require.NoError(t, err)
			for range times { // makes a blob that is there
				again, err := differ.Compare(ctx, nil, upper)
				require.NoError(t, err)
				require.Equal(t, desc.Digest, again.Digest)
			}
			there, all := isThere(t, ctx, desc.Digest), held(t, ctx)
			if time.Since(begun) < hold-time.Second { // else this process had no time
				assert.True(t, there)
				assert.Len(t, all, 1+times)
			}
			require.Eventually(t, func() bool { return len(held(t, ctx)) == 0 }, time.Minute, 10*time.Millisecond)
			assert.False(t, isThere(t, ctx, desc.Digest))
		}
	})
	t.Run("failed", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "failed")
		failing := func(io.Writer, string) (io.WriteCloser, error) { return errWriter{unix.EIO}, nil }
		_, err := NewDiffer(h.Snapshotter, store, WithLeases(manager)).Compare(ctx, nil, upper, diff.WithCompressor(failing), diff.WithMediaType("a/b"))
		require.ErrorIs(t, err, unix.EIO)
		assert.Empty(t, held(t, ctx))
	})
	t.Run("of the caller", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "callers")
		given, err := manager.Create(ctx, leases.WithID("given"))
		require.NoError(t, err)
		desc, err := NewDiffer(h.Snapshotter, store, WithLeases(manager)).Compare(leases.WithLease(ctx, given.ID), nil, upper)
		require.NoError(t, err)
		assert.True(t, isThere(t, ctx, desc.Digest))
		all := held(t, ctx)
		require.Len(t, all, 1)
		assert.Equal(t, "given", all[0].ID)
		require.NoError(t, manager.Delete(ctx, given))
		assert.False(t, isThere(t, ctx, desc.Digest))
	})
}

// dialContent serves a content store, as containerd does, and connects to it.
func dialContent(t testing.TB, store content.Store) content.Store {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "c.sock")
	stop, err := contentstore.Serve(store, socket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stop()) })
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return contentproxy.NewContentStore(conn)
}
