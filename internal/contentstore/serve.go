package contentstore

import (
	"context"
	"errors"
	"net"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Serve serves a store on a socket, as containerd does for a differ, until stop is called. It gives leases, which have no
// meaning: nobody collects garbage.
func Serve(store content.Store, socket string, opts ...grpc.ServerOption) (stop func() error, err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(opts...)
	contentapi.RegisterContentServer(server, contentserver.New(store))
	leasesapi.RegisterLeasesServer(server, leases{})
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	return func() error {
		server.Stop()
		if err := <-ended; !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	}, nil
}

type leases struct {
	leasesapi.UnimplementedLeasesServer
}

func (leases) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: r.ID, Labels: r.Labels, CreatedAt: timestamppb.Now()}}, nil
}

func (leases) Delete(context.Context, *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (leases) AddResource(context.Context, *leasesapi.AddResourceRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}
