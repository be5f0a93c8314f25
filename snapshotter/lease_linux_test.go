package snapshotter

import (
	"net"
	"path/filepath"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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

	compare := func(t *testing.T, namespace, lease string, opts ...DifferOption) (collected bool, all []leases.Lease) {
		ctx := namespaces.WithNamespace(t.Context(), namespace)
		request := ctx
		if lease != "" {
			l, err := manager.Create(ctx, leases.WithID(lease))
			require.NoError(t, err)
			request = leases.WithLease(ctx, l.ID)
		}
		desc, err := NewDiffer(h.Snapshotter, store, opts...).Compare(request, nil, upper)
		require.NoError(t, err)
		_, err = db.GarbageCollect(ctx)
		require.NoError(t, err)
		all, err = manager.List(ctx)
		require.NoError(t, err)
		_, err = db.ContentStore().Info(ctx, desc.Digest)
		if !errdefs.IsNotFound(err) {
			require.NoError(t, err)
		}
		return err != nil, all
	}

	t.Run("without", func(t *testing.T) {
		collected, all := compare(t, "none", "")
		assert.True(t, collected)
		assert.Empty(t, all)
	})
	t.Run("own", func(t *testing.T) {
		collected, all := compare(t, "own", "", WithLeases(manager))
		assert.False(t, collected)
		require.Len(t, all, 1)
		assert.Contains(t, all[0].Labels, "containerd.io/gc.expire")
	})
	t.Run("of the caller", func(t *testing.T) {
		collected, all := compare(t, "callers", "given", WithLeases(manager))
		assert.False(t, collected)
		require.Len(t, all, 1)
		assert.Equal(t, "given", all[0].ID)
	})
}

// dialContent serves a content store, as containerd does, and connects to it.
func dialContent(t *testing.T, store content.Store) content.Store {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "c.sock")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	contentapi.RegisterContentServer(server, contentserver.New(store))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		server.Stop()
		require.NoError(t, <-ended)
	})
	return contentproxy.NewContentStore(conn)
}
