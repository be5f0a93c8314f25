package snapshotter

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// serve serves both on a unix socket in dir and returns a connection to it.
func serve(dir string, s snapshots.Snapshotter, d DiffService) (conn *grpc.ClientConn, stop func(), err error) {
	socket := filepath.Join(dir, "cowshed.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer()
	Register(server, s, d)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener) // its error is that it was stopped
	}()
	conn, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	return conn, func() {
		_ = conn.Close()
		defer time.AfterFunc(testfs.Patience, server.Stop).Stop()
		server.GracefulStop()
		<-ended
	}, err
}

// Everything through the protocol: types of errors, differ and Cleanup.
func TestServed(t *testing.T) {
	h := newDifferHost(t, Options{})
	ctx := namespaces.WithNamespace(t.Context(), "default")
	h.tree()
	conn, stop, err := serve(t.TempDir(), h.Snapshotter, h.differ)
	require.NoError(t, err)
	defer stop()
	client := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
	differ, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(DiffService)
	require.True(t, ok)

	lower, err := client.View(ctx, "lower", "image")
	require.NoError(t, err)
	upper, err := client.Mounts(ctx, "active")
	require.NoError(t, err)
	desc, err := differ.Compare(ctx, lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayerZstd))
	require.NoError(t, err)
	assert.EqualValues(t, 1, h.differ.CompareStats().Native)
	mounts, err := client.Prepare(ctx, "copy", "image")
	require.NoError(t, err)
	_, err = differ.Apply(ctx, desc, mounts)
	require.NoError(t, err)
	treecmp.Equal(t, h.dir("active"), h.dir("copy"), treecmp.Options{WholeSeconds: true})

	_, err = client.Prepare(ctx, "new", "nothing")
	assert.True(t, errdefs.IsNotFound(err), "%v", err)
	_, err = client.Prepare(ctx, "new", "image", label(snapshots.LabelSnapshotMaxSize, "many"))
	assert.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	_, err = client.Prepare(ctx, "copy", "image")
	assert.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	assert.True(t, errdefs.IsFailedPrecondition(client.Remove(ctx, "image")))
	_, err = differ.Compare(ctx, lower, upper, diff.WithMediaType("text/plain"))
	assert.True(t, errdefs.IsNotImplemented(err), "%v", err)
	err = client.Walk(ctx, nil, "no filter(")
	assert.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	desc.Size++
	_, err = differ.Apply(ctx, desc, mounts)
	assert.True(t, errdefs.IsFailedPrecondition(err), "%v", err)

	volume := h.volume("copy")
	require.NoError(t, client.Remove(ctx, "copy"))
	cleaner, ok := client.(snapshots.Cleaner)
	require.True(t, ok)
	require.NoError(t, cleaner.Cleanup(ctx))
	assert.NotContains(t, h.volumes(), volume)
}

// The differ asks containerd's content store in the name of the client.
func TestNamespaceAndLeasePassOn(t *testing.T) {
	asked := metadata.NewIncomingContext(t.Context(), metadata.Pairs(namespaces.GRPCHeader, "moby", leases.GRPCHeader, "lease"))
	out, ok := metadata.FromOutgoingContext(toStore(asked))
	require.True(t, ok)
	assert.Equal(t, []string{"moby"}, out.Get(namespaces.GRPCHeader))
	assert.Equal(t, []string{"lease"}, out.Get(leases.GRPCHeader))
	_, ok = metadata.FromOutgoingContext(toStore(t.Context()))
	assert.False(t, ok)
}
