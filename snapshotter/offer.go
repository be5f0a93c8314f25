package snapshotter

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// AdoptLabel is a label of Prepare, with the value Offered: the snapshot is to be a copy of the volume that root has
// offered for its key. The snapshotter does not keep the label.
const (
	AdoptLabel = "containerd.io/snapshot/cowshed.dev.adopt"
	Offered    = "offered"
)

// Labels of a request to offer a volume, or to check that: where the Backend finds it, and the volume that its parent will be
// adopted from.
const (
	sourceLabel  = "cowshed.dev/source"
	plannedLabel = "cowshed.dev/planned"
)

const (
	// offerTime is how long an offer waits for its Prepare.
	offerTime = time.Minute
	// maxOffers is how many offers wait at most.
	maxOffers = 4096
)

// offerKey names the snapshot that an offer is for, as containerd's client does.
type offerKey struct{ namespace, key string }

// offer is a volume of another program, of which the next snapshot with its key is to be a copy.
type offer struct {
	source string
	until  time.Time
}

// Offer makes the next Prepare of a key in a namespace of containerd, with AdoptLabel, a copy of a volume that another
// program has made: the path of a btrfs subvolume, or the name of a ZFS dataset. No data is copied. That Prepare returns
// errdefs.ErrNotImplemented if the Backend cannot adopt the volume, and can then be repeated without the label. An offer
// is good for one Prepare within a minute, in this process.
//
// Prepare has no label that names the volume. Authors of pods and images can set all labels that containerd passes on,
// and must not choose a volume of the host. Only root reaches the socket where offers are made.
//
// Returns errdefs.ErrNotImplemented if the Backend adopts no volumes.
func (s *Snapshotter) Offer(_ context.Context, namespace, key, source string) error {
	return wrap("offer a volume for snapshot", key, s.offer(offerKey{namespace, key}, source))
}

func (s *Snapshotter) offer(of offerKey, source string) error {
	if err := checkKey(of.key); err != nil {
		return err
	}
	if source == "" {
		return fault.New(errdefs.ErrInvalidArgument, "an offer needs a volume")
	}
	if _, ok := cowcommon.As[cowcommon.Adopter](s.backend); !ok {
		return fault.New(errdefs.ErrNotImplemented, "a %T adopts no volumes", s.backend)
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, o := range s.offers {
		if now.After(o.until) {
			delete(s.offers, k)
		}
	}
	if len(s.offers) >= maxOffers {
		return fault.New(errdefs.ErrResourceExhausted, "%d offers are waiting", len(s.offers))
	}
	s.offers[of] = offer{source, now.Add(offerTime)}
	return nil
}

// takeOffer returns the volume that was offered for a key, and forgets the offer. Returns errdefs.ErrNotFound if there is
// none.
func (s *Snapshotter) takeOffer(key string) (source string, err error) {
	namespace, own := SplitKey(key)
	of := offerKey{namespace, own}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.offers[of]
	delete(s.offers, of)
	if !ok || time.Now().After(o.until) {
		return "", fault.New(errdefs.ErrNotFound, "no volume is offered for it: the offer may have expired")
	}
	return o.source, nil
}

// adopt makes the volume of a snapshot a copy of another program's.
func (s *Snapshotter) adopt(ctx context.Context, key string, made record, opts cowcommon.VolumeOptions) error {
	source, err := s.takeOffer(key)
	if err != nil {
		return err
	}
	adopter, ok := cowcommon.As[cowcommon.Adopter](s.backend)
	if !ok {
		return fault.New(errdefs.ErrNotImplemented, "a %T adopts no volumes", s.backend)
	}
	return adopter.Adopt(ctx, made.volume, made.parentVolume, source, opts)
}

// CheckOffer returns the error that Prepare of an offered volume would return because of the volume, or of the volume
// and its parent. parent is the name of the parent in a namespace of containerd, "" for none. See
// cowcommon.Adopter.CheckAdopt.
func (s *Snapshotter) CheckOffer(ctx context.Context, namespace, parent, source, planned string) error {
	return wrap("check the offer of volume", source, s.checkOffer(ctx, offerKey{namespace, parent}, source, planned))
}

func (s *Snapshotter) checkOffer(ctx context.Context, parent offerKey, source, planned string) error {
	if parent.key == "" {
		return cowcommon.CheckAdopt(ctx, s.backend, "", source, planned)
	}
	return s.withVolume(ctx, parent, func(ctx context.Context, backend cowcommon.Backend, volume string) error {
		return cowcommon.CheckAdopt(ctx, backend, volume, source, planned)
	})
}

// Settle makes the volume of a snapshot independent of the volume that it was adopted from. It is cowcommon.Settler.Settle
// for a key in a namespace of containerd. Returns errdefs.ErrNotFound if there is no such snapshot.
func (s *Snapshotter) Settle(ctx context.Context, namespace, key string) error {
	return wrap("settle snapshot", key, s.withVolume(ctx, offerKey{namespace, key}, cowcommon.Settle))
}

// CheckSettle is cowcommon.Settler.CheckSettle for keys in a namespace of containerd. Returns errdefs.ErrNotFound if there
// is no such snapshot.
func (s *Snapshotter) CheckSettle(ctx context.Context, namespace string, keys ...string) error {
	var volumes []string
	for _, key := range keys {
		err := s.withVolume(ctx, offerKey{namespace, key}, func(_ context.Context, _ cowcommon.Backend, volume string) error {
			volumes = append(volumes, volume)
			return nil
		})
		if err != nil {
			return wrap("check settling of snapshot", key, err)
		}
	}
	return cowcommon.CheckSettle(ctx, s.backend, volumes...)
}

// withVolume calls do with the volume of a snapshot.
func (s *Snapshotter) withVolume(ctx context.Context, of offerKey, do func(context.Context, cowcommon.Backend, string) error) error {
	key := of.key
	if in, _ := SplitKey(key); in != "" || of.namespace != "" { // else it does not come from containerd
		var err error
		if key, err = s.Key(ctx, of.namespace, of.key); err != nil {
			return err
		}
	}
	r, err := s.read(ctx, key)
	if err != nil {
		return err
	}
	return do(ctx, s.backend, r.volume)
}

// LimitFilled is SetLimit for a key in a namespace of containerd. A container that was moved here may hold more than
// its limit, and Update refuses such a limit. The caller then calls Update with the same limit, so that containerd
// knows the limit.
func (s *Snapshotter) LimitFilled(ctx context.Context, namespace, key string, bytes uint64) error {
	own, err := s.Key(ctx, namespace, key)
	if err != nil {
		return err
	}
	return s.SetLimit(ctx, own, bytes)
}

// CheckRoom returns errdefs.ErrResourceExhausted if the volumes have less space than bytes. Returns errdefs.ErrNotImplemented
// if the filesystem of the Backend's home has the space: the caller can measure that.
func (s *Snapshotter) CheckRoom(ctx context.Context, bytes uint64) error {
	free, err := cowcommon.Free(ctx, s.backend)
	if err == nil && bytes > free {
		err = fault.New(errdefs.ErrResourceExhausted, "%s are needed, and %s has %s", quota.FormatSize(bytes), cowcommon.Place(s.backend), quota.FormatSize(free))
	}
	return err
}

// Offerer is a snapshotter that takes offers: a *Snapshotter, or a wrapper around it.
type Offerer interface {
	Offer(ctx context.Context, namespace, key, source string) error
	CheckOffer(ctx context.Context, namespace, parent, source, planned string) error
	Settle(ctx context.Context, namespace, key string) error
	LimitFilled(ctx context.Context, namespace, key string, bytes uint64) error
	CheckSettle(ctx context.Context, namespace string, keys ...string) error
	CheckRoom(ctx context.Context, bytes uint64) error
}

// The service has six methods, and their messages are containerd's.
const (
	offersService = "cowshed.snapshotter.v1.Offers"
	offerMethod   = "Offer"
	canMethod     = "CheckOffer"
	settleMethod  = "Settle"
	limitMethod   = "LimitFilled"
	checkMethod   = "CheckSettle"
	roomMethod    = "CheckRoom"
)

var offersDesc = grpc.ServiceDesc{
	ServiceName: offersService,
	HandlerType: (*Offerer)(nil),
	Methods: []grpc.MethodDesc{
		offersMethod(offerMethod, func(ctx context.Context, o Offerer, namespace string, r *snapshotsapi.PrepareSnapshotRequest) error {
			return o.Offer(ctx, namespace, r.GetKey(), r.GetLabels()[sourceLabel])
		}),
		offersMethod(canMethod, func(ctx context.Context, o Offerer, namespace string, r *snapshotsapi.PrepareSnapshotRequest) error {
			return o.CheckOffer(ctx, namespace, r.GetParent(), r.GetLabels()[sourceLabel], r.GetLabels()[plannedLabel])
		}),
		offersMethod(settleMethod, func(ctx context.Context, o Offerer, namespace string, r *snapshotsapi.PrepareSnapshotRequest) error {
			return o.Settle(ctx, namespace, r.GetKey())
		}),
		offersMethod(limitMethod, func(ctx context.Context, o Offerer, namespace string, r *snapshotsapi.PrepareSnapshotRequest) error {
			bytes, err := bytesIn(r)
			if err != nil {
				return err
			}
			return o.LimitFilled(ctx, namespace, r.GetKey(), bytes)
		}),
		offersMethod(checkMethod, func(ctx context.Context, o Offerer, namespace string, r *snapshotsapi.PrepareSnapshotRequest) error {
			return o.CheckSettle(ctx, namespace, slices.Sorted(maps.Keys(r.GetLabels()))...)
		}),
		offersMethod(roomMethod, func(ctx context.Context, o Offerer, _ string, r *snapshotsapi.PrepareSnapshotRequest) error {
			bytes, err := bytesIn(r)
			if err != nil {
				return err
			}
			return o.CheckRoom(ctx, bytes)
		}),
	},
}

// bytesIn is the number of bytes in a request that bytesLabels has made.
func bytesIn(r *snapshotsapi.PrepareSnapshotRequest) (uint64, error) {
	bytes, err := strconv.ParseUint(r.GetLabels()[limitLabel], 10, 64)
	if err != nil {
		return 0, fault.New(errdefs.ErrInvalidArgument, "%q is no number of bytes", r.GetLabels()[limitLabel])
	}
	return bytes, nil
}

func bytesLabels(bytes uint64) map[string]string {
	return map[string]string{limitLabel: strconv.FormatUint(bytes, 10)}
}

// offersMethod makes a method of the service.
func offersMethod(method string, do func(ctx context.Context, offerer Offerer, namespace string, r *snapshotsapi.PrepareSnapshotRequest) error) grpc.MethodDesc {
	return methodOf(offersService, method, func(ctx context.Context, offerer Offerer, namespace string, r *snapshotsapi.PrepareSnapshotRequest) (any, error) {
		return &emptypb.Empty{}, do(ctx, offerer, namespace, r)
	})
}

// methodOf makes a method of a service with its handler, which grpc's compiler makes for other services.
func methodOf[Server, Request any](service, method string, do func(context.Context, Server, string, *Request) (any, error)) grpc.MethodDesc {
	handler := func(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		request := new(Request)
		if err := decode(request); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, request any) (any, error) {
			r, ok := request.(*Request)
			s, is := server.(Server)
			if !ok || !is {
				return nil, errgrpc.ToGRPC(errdefs.ErrInternal)
			}
			namespace, _ := namespaces.Namespace(ctx)
			answer, err := do(ctx, s, namespace, r)
			if err != nil {
				return nil, errgrpc.ToGRPC(err)
			}
			return answer, nil
		}
		if interceptor == nil {
			return handle(ctx, request)
		}
		return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: server, FullMethod: "/" + service + "/" + method}, handle)
	}
	return grpc.MethodDesc{MethodName: method, Handler: handler}
}

// OffersClient makes offers to a snapshotter that another process serves, and settles and limits its snapshots.
type OffersClient struct{ Conn grpc.ClientConnInterface }

// Offer is Snapshotter.Offer. Returns errdefs.ErrNotImplemented if the server takes no offers.
func (c OffersClient) Offer(ctx context.Context, namespace, key, source string) error {
	return c.call(ctx, offerMethod, namespace, &snapshotsapi.PrepareSnapshotRequest{Key: key, Labels: map[string]string{sourceLabel: source}})
}

// CheckOffer is Snapshotter.CheckOffer. Returns errdefs.ErrNotImplemented if the server does not know it.
func (c OffersClient) CheckOffer(ctx context.Context, namespace, parent, source, planned string) error {
	labels := map[string]string{sourceLabel: source, plannedLabel: planned}
	return c.call(ctx, canMethod, namespace, &snapshotsapi.PrepareSnapshotRequest{Parent: parent, Labels: labels})
}

// Settle is Snapshotter.Settle. Returns errdefs.ErrNotImplemented if the server settles nothing.
func (c OffersClient) Settle(ctx context.Context, namespace, key string) error {
	return c.call(ctx, settleMethod, namespace, &snapshotsapi.PrepareSnapshotRequest{Key: key})
}

// LimitFilled is Snapshotter.LimitFilled. Returns errdefs.ErrNotImplemented if the server is of a version without
// LimitFilled.
func (c OffersClient) LimitFilled(ctx context.Context, namespace, key string, bytes uint64) error {
	return c.call(ctx, limitMethod, namespace, &snapshotsapi.PrepareSnapshotRequest{Key: key, Labels: bytesLabels(bytes)})
}

// CheckRoom is Snapshotter.CheckRoom. Returns errdefs.ErrNotImplemented also if the server is of a version without
// CheckRoom.
func (c OffersClient) CheckRoom(ctx context.Context, bytes uint64) error {
	return c.call(ctx, roomMethod, "", &snapshotsapi.PrepareSnapshotRequest{Labels: bytesLabels(bytes)})
}

// CheckSettle is Snapshotter.CheckSettle. Returns errdefs.ErrNotImplemented if the server does not know it.
func (c OffersClient) CheckSettle(ctx context.Context, namespace string, keys ...string) error {
	labels := make(map[string]string, len(keys))
	for _, key := range keys {
		labels[key] = ""
	}
	return c.call(ctx, checkMethod, namespace, &snapshotsapi.PrepareSnapshotRequest{Labels: labels})
}

func (c OffersClient) call(ctx context.Context, method, namespace string, request *snapshotsapi.PrepareSnapshotRequest) error {
	if namespace != "" {
		ctx = namespaces.WithNamespace(ctx, namespace)
	}
	return errgrpc.ToNative(c.Conn.Invoke(ctx, "/"+offersService+"/"+method, request, new(emptypb.Empty)))
}
