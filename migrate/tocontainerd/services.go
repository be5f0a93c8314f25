package tocontainerd

import (
	"context"
	"fmt"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/snapshotter"
)

// services are the parts of containerd that a Target uses, and Cowshed's own.
type services struct {
	content   content.Store
	snapshots snapshots.Snapshotter
	images    images.Store
	leases    leases.Manager
	// offers takes volumes that Cowshed is to adopt. nil: it cannot be reached.
	offers snapshotter.Offerer
	// root is the directory of Cowshed's volumes, "" if it is not known.
	root string

	closers []func() error
}

// connect connects to containerd, and to the Cowshed that it uses. Returns errdefs.ErrUnavailable if no containerd
// answers, and errdefs.ErrNotFound if it has no such snapshotter.
func connect(ctx context.Context, o Options) (*services, error) {
	c, err := containerdapi.Connect(o.Address)
	if err != nil {
		return nil, err
	}
	s := &services{
		content: c.Content, snapshots: c.Snapshots(o.Snapshotter), images: c.Images, leases: c.Leases,
		closers: []func() error{c.Close},
	}
	address, root, err := proxyOf(ctx, c.Conn, o)
	if err != nil {
		return s, err
	}
	s.root = root
	if address == "" {
		return s, nil // it is in containerd itself, and not Cowshed
	}
	own, err := containerdapi.Dial(address)
	if err != nil {
		return s, err
	}
	s.offers, s.closers = snapshotter.OffersClient{Conn: own}, append(s.closers, own.Close)
	return s, nil
}

// proxyOf returns the socket and the root of a snapshotter, as containerd's configuration has them.
func proxyOf(ctx context.Context, conn grpc.ClientConnInterface, o Options) (address, root string, err error) {
	filter := fmt.Sprintf("type==io.containerd.snapshotter.v1,id==%q", o.Snapshotter)
	answer, err := introspectionapi.NewIntrospectionClient(conn).Plugins(ctx, &introspectionapi.PluginsRequest{Filters: []string{filter}})
	if err != nil {
		return "", "", fmt.Errorf("ask containerd at %s for its snapshotters: %w", o.Address, errgrpc.ToNative(err))
	}
	for _, plugin := range answer.GetPlugins() {
		return plugin.GetExports()["address"], plugin.GetExports()["root"], nil
	}
	return "", "", fault.New(errdefs.ErrNotFound, "containerd at %s has no snapshotter %q: see cowshed setup containerd", o.Address, o.Snapshotter)
}
