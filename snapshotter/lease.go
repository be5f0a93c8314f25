package snapshotter

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/internal/poll"
)

// leaseTimes says how long leases last. containerd's cannot be prolonged, only deleted and made anew.
type leaseTimes struct {
	// upload is how long an upload is still held when the daemon that makes it has been killed.
	upload time.Duration
	// renew is how often the leases of an upload are made anew.
	renew time.Duration
	// commit is how long the store may take to commit an upload, beside the time that the disk needs at commitPace.
	commit time.Duration
	// hold is how long a blob is held at most for the client to refer to it: long for a busy machine, and short for clients that look
	// whether all is gone that they have removed. BuildKit's own tests look for 25 seconds.
	hold time.Duration
}

var defaultLeaseTimes = leaseTimes{upload: time.Minute, renew: 20 * time.Second, commit: 30 * time.Second, hold: 20 * time.Second}

// commitPace is how many bytes of an upload a slow disk writes in a second.
const commitPace = 8 << 20

// toCommit is how long the store may take to commit an upload: at its Commit it writes the upload to the disk. Meanwhile the leases
// cannot be made anew: Commit fails at a moment at which the lease of its request is not there.
func (t leaseTimes) toCommit(bytes int64) time.Duration {
	return t.commit + time.Duration(bytes)*time.Second/commitPace
}

// WithLeases makes Compare hold its blobs by leases of its own, if a request comes without a lease. containerd passes
// the namespace of a request on to proxy plugins, and not the lease. So a blob could be collected as garbage before
// the client refers to it. An upload is held until it ends, and the blob until a lease of the client has it, for at most
// twenty seconds. If the process ends meanwhile, the leases expire within a minute. During the commit of a blob of more
// than 240 MiB they last half a minute, and one second more for each 8 MiB.
func WithLeases(manager leases.Manager) DifferOption {
	return func(d *Differ) { d.store = leasedStore{d.store, manager, defaultLeaseTimes, d.snapshotter} }
}

// leasedStore is a content store whose uploads, and the blobs that they become, are held by leases.
type leasedStore struct {
	content.Store
	manager leases.Manager
	times   leaseTimes

	snapshotter *Snapshotter
}

// Writer implements content.Ingester. ctx is that of all requests of the writer, also of its Commit.
func (s leasedStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if id, ok := leases.FromContext(ctx); ok {
		w, err := s.Store.Writer(ctx, opts...)
		if err != nil {
			return nil, err
		}
		return &leasedWriter{Writer: w, store: s, ctx: ctx, lease: leases.Lease{ID: id}}, nil
	}
	var config content.WriterOpts
	for _, opt := range opts {
		if err := opt(&config); err != nil {
			return nil, err
		}
	}
	made := time.Now()
	lease, err := s.create(ctx, leases.WithRandomID(), s.times.upload)
	if err != nil {
		return nil, err
	}
	w, err := s.Store.Writer(leases.WithLease(ctx, lease.ID), opts...)
	if err != nil {
		s.release(ctx, lease, s.times.upload)
		return nil, err
	}
	renewal := newRenewal(ctx, s, lease, made, leases.Resource{ID: config.Ref, Type: "ingests"})
	return &leasedWriter{Writer: w, store: s, ctx: ctx, lease: lease, renewal: renewal}, nil
}

// ownLease is the label of the leases that Cowshed makes. containerd does not keep a label without a value.
const ownLease = "cowshed.dev/layer"

// create makes a lease that lasts that long.
func (s leasedStore) create(ctx context.Context, name leases.Opt, last time.Duration) (leases.Lease, error) {
	lease, err := s.manager.Create(ctx, name, leases.WithExpiration(last), leases.WithLabel(ownLease, "held"))
	if err != nil {
		return lease, fmt.Errorf("create lease: %w", err)
	}
	return lease, nil
}

// clientPauses are the pauses before the leases of clients are looked at again.
var clientPauses = poll.Pauses{First: 100 * time.Millisecond, Longest: 2 * time.Second}

// mostLeases is how many leases are looked at: each takes a request. Among more, a blob is held as long as is allowed.
const mostLeases = 256

// awaitClient waits until a lease of a client has a fresh blob, or the client has had its time. The leases that have a blob which was
// there before may be those of other clients, and end sooner.
func (s leasedStore) awaitClient(ctx context.Context, blob leases.Resource, fresh bool) {
	pauses := clientPauses
	pauses.AtMost = s.times.hold
	_ = poll.WhileBusy(ctx, pauses, func() (busy bool, err error) { return !fresh || !s.isClients(ctx, blob), nil })
}

// isClients reports whether a lease of a client has a blob. If that cannot be seen, it reports false.
func (s leasedStore) isClients(ctx context.Context, blob leases.Resource) bool {
	all, err := s.manager.List(ctx)
	if err != nil || len(all) > mostLeases {
		return false
	}
	return slices.ContainsFunc(all, func(lease leases.Lease) bool {
		if _, own := lease.Labels[ownLease]; own {
			return false
		}
		resources, err := s.manager.ListResources(ctx, lease)
		return err == nil && slices.Contains(resources, blob)
	})
}

// releasePauses are the pauses before a lease is tried to be deleted again.
var releasePauses = poll.Pauses{First: 100 * time.Millisecond, Longest: 5 * time.Second}

// release deletes a lease, also when the request has been cancelled. If containerd does not answer, release goes on in the background
// until containerd does, until the lease has expired, or until the Snapshotter is closed. The lease lasts at most that long.
func (s leasedStore) release(ctx context.Context, lease leases.Lease, lasts time.Duration) {
	soon, cancel := toGiveUp(ctx)
	defer cancel()
	if s.delete(soon, lease) != nil {
		s.snapshotter.background.run(ctx, func(ctx context.Context) { s.keepReleasing(ctx, lease, lasts) })
	}
}

// keepReleasing tries to delete a lease until that succeeds or the lease has expired. Where it gives up, it says so.
func (s leasedStore) keepReleasing(ctx context.Context, lease leases.Lease, lasts time.Duration) {
	pauses := releasePauses
	pauses.AtMost = lasts
	err := poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		once, cancel := context.WithTimeout(ctx, giveUpAfter)
		defer cancel()
		err = s.delete(once, lease)
		return err != nil, err
	})
	if err != nil {
		s.snapshotter.log.Warn("snapshotter: a lease of a new layer cannot be deleted, and expires by itself", "lease", lease.ID, "error", err)
	}
}

// delete deletes a lease, which may not be there.
func (s leasedStore) delete(ctx context.Context, lease leases.Lease) error {
	if err := s.manager.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease: %w", err)
	}
	return nil
}

// leasedWriter is an upload that a lease holds.
type leasedWriter struct {
	content.Writer
	store   leasedStore
	ctx     context.Context //nolint:containedctx // that of the requests of the writer
	lease   leases.Lease    // which the requests of the writer carry
	renewal *renewal        // nil: the lease is the client's
	written int64           // bytes
	blob    leases.Resource // ID "": it is not there
	fresh   bool            // the blob was not there before
}

// Write implements io.Writer.
func (w *leasedWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.written += int64(n)
	return n, err
}

// Commit implements content.Writer. The lease holds the blob before it is there: it may have been there all the time,
// with nothing else that holds it.
func (w *leasedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	if w.renewal != nil {
		if err := w.renewal.stop(w.store.times.toCommit(w.written)); err != nil {
			return err
		}
	}
	blob := leases.Resource{ID: expected.String(), Type: "content"}
	if err := w.store.manager.AddResource(w.ctx, w.lease, blob); err != nil {
		return fmt.Errorf("lease %s: %w", expected, err)
	}
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	w.blob, w.fresh = blob, err == nil
	if w.renewal != nil {
		w.lease = w.renewal.shorten(blob)
	}
	return err
}

// Close implements content.Writer.
func (w *leasedWriter) Close() error {
	err := w.Writer.Close()
	if w.renewal == nil {
		return err
	}
	w.renewal.end()
	if w.blob.ID == "" {
		w.store.release(w.ctx, w.lease, w.renewal.lasts)
		return err
	}
	w.store.snapshotter.background.run(w.ctx, func(ctx context.Context) {
		w.store.awaitClient(ctx, w.blob, w.fresh)
		if ctx.Err() == nil { // else the lease expires
			w.store.keepReleasing(ctx, w.lease, w.renewal.lasts)
		}
	})
	return err
}

// renewal makes the lease of an upload anew while it runs. The requests of the upload carry the name of the lease, so
// that the new one has to have the same. While there is none, a second lease holds the upload.
type renewal struct {
	ctx    context.Context //nolint:containedctx // that of the requests of the upload
	store  leasedStore
	lease  leases.Lease
	ingest leases.Resource
	second leases.Lease // ID "": there is none

	made  time.Time     // when the leases were made; zero: they may not be there
	lasts time.Duration // from then on

	stopped chan struct{}
	stopOne sync.Once
	running sync.WaitGroup
}

func newRenewal(ctx context.Context, s leasedStore, lease leases.Lease, made time.Time, ingest leases.Resource) *renewal {
	r := &renewal{ctx: ctx, store: s, lease: lease, ingest: ingest, made: made, lasts: s.times.upload, stopped: make(chan struct{})}
	r.running.Go(r.run)
	return r
}

func (r *renewal) run() {
	ticker := time.NewTicker(r.store.times.renew)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := r.renew(r.store.times.upload); err != nil && r.ctx.Err() == nil {
				r.store.snapshotter.log.Warn("snapshotter: the lease of an upload cannot be renewed yet, and the next attempt follows", "lease", r.lease.ID, "error", err)
			}
		case <-r.ctx.Done():
			return
		case <-r.stopped:
			return
		}
	}
}

// renew makes both leases anew. One of them is there all the time.
func (r *renewal) renew(last time.Duration) error {
	if r.second.ID == "" {
		second := leases.Lease{}
		if err := leases.WithRandomID()(&second); err != nil {
			return err
		}
		r.second = second
	}
	made := time.Now()
	r.made, r.lasts = time.Time{}, max(r.lasts, last)
	for _, lease := range []leases.Lease{r.second, r.lease} {
		if err := r.remake(lease, last, r.ingest); err != nil {
			return err
		}
	}
	r.made = made
	return nil
}

// remake makes a lease anew, to hold a resource for that long. Meanwhile another lease holds the resource.
func (r *renewal) remake(lease leases.Lease, last time.Duration, held leases.Resource) error {
	if err := r.store.delete(r.ctx, lease); err != nil {
		return err
	}
	if _, err := r.store.create(r.ctx, leases.WithID(lease.ID), last); err != nil {
		return err
	}
	if err := r.store.manager.AddResource(r.ctx, lease, held); err != nil {
		return fmt.Errorf("lease %s: %w", held.ID, err)
	}
	return nil
}

// shorten returns the lease that holds the blob of an upload from now on. If the leases were made to last longer than usual, that is
// the second, which then lasts no longer than the client has time. So the blob also goes if this process ends before it deletes the lease.
func (r *renewal) shorten(blob leases.Resource) leases.Lease {
	if r.lasts <= r.store.times.upload {
		return r.lease
	}
	// An expiry has whole seconds.
	if err := r.remake(r.second, r.store.times.hold+time.Second, blob); err != nil {
		r.store.snapshotter.log.Warn("snapshotter: the lease of a new layer cannot be shortened", "lease", r.lease.ID, "error", err)
		return r.lease
	}
	r.store.release(r.ctx, r.lease, r.lasts)
	short := r.second
	r.second = leases.Lease{} // the upload has no second lease any more
	return short
}

// stop ends the renewal. The leases last that long from now on: if need be, they are made anew once more.
func (r *renewal) stop(last time.Duration) error {
	r.halt()
	if r.made.Add(r.lasts).After(time.Now().Add(last)) {
		return nil
	}
	return r.renew(max(last, r.store.times.upload))
}

func (r *renewal) halt() {
	r.stopOne.Do(func() { close(r.stopped) })
	r.running.Wait()
}

// end deletes the second lease.
func (r *renewal) end() {
	r.halt()
	if r.second.ID != "" {
		r.store.release(r.ctx, r.second, r.lasts)
	}
}
