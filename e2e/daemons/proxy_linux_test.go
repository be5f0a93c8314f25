package daemons

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// proxied is containerd's own overlay snapshotter and differ, served by the test as another program would: what
// fails with it is not a fault of what Cowshed serves in the same way.
func proxied() snapshotter {
	const name, differ = "proxied", "proxied-diff"
	return snapshotter{name, func(t *testing.T, h *harness.Host) harness.ContainerdOptions {
		root := filepath.Join(h.Data, name)
		sn, err := overlay.NewSnapshotter(root)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, sn.Close()) })
		d := &lateDiffer{address: h.ContainerdAddress("containerd")}
		t.Cleanup(d.close)

		socket := filepath.Join(h.Dir, "proxied.sock")
		listener, err := net.Listen("unix", socket)
		require.NoError(t, err)
		server := grpc.NewServer()
		snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
		diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(d, d))
		done := make(chan error)
		go func() { done <- server.Serve(listener) }()
		t.Cleanup(func() {
			server.Stop()
			assert.NoError(t, <-done)
		})
		return harness.ProxyOptions(socket, name, differ, root)
	}}
}

// lateDiffer is containerd's differ, on the content of a containerd that need not run yet.
type lateDiffer struct {
	address string
	once    sync.Once
	client  *client.Client
	err     error
}

// connect returns ctx for requests to containerd, in the namespace of the one that is being served.
func (d *lateDiffer) connect(ctx context.Context) (context.Context, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	d.once.Do(func() { d.client, d.err = client.New(d.address) })
	return namespaces.WithNamespace(ctx, namespace), d.err
}

func (d *lateDiffer) close() {
	if d.client != nil {
		_ = d.client.Close() // containerd has ended by then
	}
}

func (d *lateDiffer) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	ctx, err := d.connect(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	// containerd passes the namespace of a request on to a proxy plugin, and not the lease. Without one, what is written
	// here may be collected as garbage before the client refers to it. The lease ends by itself.
	lease, err := d.client.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Minute))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	ctx = leases.WithLease(ctx, lease.ID)
	return walking.NewWalkingDiff(d.client.ContentStore()).Compare(ctx, lower, upper, opts...)
}

func (d *lateDiffer) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	ctx, err := d.connect(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return apply.NewFileSystemApplier(d.client.ContentStore()).Apply(ctx, desc, mounts, opts...)
}
