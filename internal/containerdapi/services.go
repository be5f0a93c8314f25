// Package containerdapi reaches the services of containerd, without all that containerd's own client needs.
package containerdapi

import (
	"strings"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Services are the services that keep containerd's images.
type Services struct {
	Content content.Store
	Images  images.Store
	Leases  leases.Manager
	// Snapshots is the snapshotter of a name.
	Snapshots func(name string) snapshots.Snapshotter
	// Conn leads to containerd's other services.
	Conn grpc.ClientConnInterface
	// Close ends the connection.
	Close func() error
}

// Connect makes a connection to containerd that is opened at its first use. The caller closes it.
func Connect(socket string) (*Services, error) {
	conn, err := Dial(socket)
	if err != nil {
		return nil, err
	}
	return &Services{
		Content: contentproxy.NewContentStore(conn),
		Images:  ImageStore{imagesapi.NewImagesClient(conn)},
		Leases:  leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
		Snapshots: func(name string) snapshots.Snapshotter {
			return snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name)
		},
		Conn:  conn,
		Close: conn.Close,
	}, nil
}

// Dial makes a connection to the socket of containerd, or of a proxy plugin of it, that is opened at its first use.
func Dial(socket string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+strings.TrimPrefix(socket, "unix://"), append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket is on this machine, and root's
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)),
	}, options...)...)
}
