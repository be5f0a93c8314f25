package soak

import (
	"context"
	"net"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cowshed/cowshed/internal/contentstore"
)

// serveContent serves a content store on a socket, as containerd does for the differ, until the test ends.
func serveContent(t testing.TB, socket string) content.Store {
	t.Helper()
	store, err := contentstore.Open(t.TempDir())
	require.NoError(t, err)
	server := grpc.NewServer()
	contentapi.RegisterContentServer(server, contentserver.New(store))
	leasesapi.RegisterLeasesServer(server, leases{})
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-ended)
	})
	return store
}

// leases gives leases on a store that nobody collects garbage in.
type leases struct {
	leasesapi.UnimplementedLeasesServer
}

func (leases) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: r.ID, Labels: r.Labels, CreatedAt: timestamppb.Now()}}, nil
}

func (leases) Delete(context.Context, *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}
