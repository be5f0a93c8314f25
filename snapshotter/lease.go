package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// leaseTimes says how long leases last. containerd's cannot be prolonged, only deleted and made anew.
type leaseTimes struct {
	// upload is how long an upload is still held when the daemon that makes it has been killed.
	upload time.Duration
	// renew is how often the leases of an upload are made anew.
	renew time.Duration
	// commit is how long the store may take to write a blob to the disk. Meanwhile its leases are not made anew.
	commit time.Duration
	// hold is how long a blob is held for the client to refer to it: long for a busy machine, and short for clients that look whether
	// all is gone that they have removed. BuildKit's own tests look for 25 seconds.
	hold time.Duration
}

var defaultLeaseTimes = leaseTimes{upload: time.Minute, renew: 20 * time.Second, commit: 10 * time.Minute, hold: 20 * time.Second}

// WithLeases makes Compare hold its blobs by leases of its own, if a request comes without a lease. containerd passes
// the namespace of a request on to proxy plugins, and not the lease. So a blob could be collected as garbage before
// the client refers to it. An upload is held until it ends, and the blob for twenty seconds more. If the process ends
// meanwhile, the leases expire within a minute, or within ten if it was killed while the store was at work.
func WithLeases(manager leases.Manager) DifferOption {
	return func(d *Differ) { d.store = leasedStore{d.store, manager, defaultLeaseTimes, d.snapshotter.log} }
}

// leasedStore is a content store whose uploads, and the blobs that they become, are held by leases.
type leasedStore struct {
	content.Store
	manager leases.Manager
	times   leaseTimes
	log     *slog.Logger
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
	lease, err := s.manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(s.times.upload))
	if err != nil {
		return nil, fmt.Errorf("create lease: %w", err)
	}
	w, err := s.Store.Writer(leases.WithLease(ctx, lease.ID), opts...)
	if err != nil {
		s.release(ctx, lease)
		return nil, err
	}
	renewal := newRenewal(ctx, s, lease, leases.Resource{ID: config.Ref, Type: "ingests"})
	return &leasedWriter{Writer: w, store: s, ctx: ctx, lease: lease, renewal: renewal}, nil
}

// release deletes a lease, also when the request has been cancelled. Where that fails, it says so: the lease expires.
func (s leasedStore) release(ctx context.Context, lease leases.Lease) {
	ctx, cancel := toGiveUp(ctx)
	defer cancel()
	if err := s.manager.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("snapshotter: a lease of a new layer cannot be deleted, and expires by itself", "lease", lease.ID, "error", err)
	}
}

// leasedWriter is an upload that a lease holds.
type leasedWriter struct {
	content.Writer
	store   leasedStore
	ctx     context.Context //nolint:containedctx // that of the requests of the writer
	lease   leases.Lease    // which the requests of the writer carry
	renewal *renewal        // nil: the lease is the client's
	held    bool            // the blob is there
}

// Commit implements content.Writer. The lease holds the blob before it is there: it may have been there all the time,
// with nothing else that holds it.
func (w *leasedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	if w.renewal != nil {
		if err := w.renewal.stop(w.store.times.commit); err != nil {
			return err
		}
	}
	blob := leases.Resource{ID: expected.String(), Type: "content"}
	if err := w.store.manager.AddResource(w.ctx, w.lease, blob); err != nil {
		return fmt.Errorf("lease %s: %w", expected, err)
	}
	err := w.Writer.Commit(ctx, size, expected, opts...)
	w.held = err == nil || errdefs.IsAlreadyExists(err)
	if w.held && w.renewal != nil {
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
	if w.held {
		time.AfterFunc(w.store.times.hold, func() { w.store.release(w.ctx, w.lease) })
	} else {
		w.store.release(w.ctx, w.lease)
	}
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
	begun  time.Time

	prolonged bool // both leases last through the Commit

	stopped chan struct{}
	stopOne sync.Once
	running sync.WaitGroup
}

func newRenewal(ctx context.Context, s leasedStore, lease leases.Lease, ingest leases.Resource) *renewal {
	r := &renewal{ctx: ctx, store: s, lease: lease, ingest: ingest, begun: time.Now(), stopped: make(chan struct{})}
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
				r.store.log.Warn("snapshotter: the lease of an upload cannot be renewed yet, and the next attempt follows", "lease", r.lease.ID, "error", err)
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
	for _, lease := range []leases.Lease{r.second, r.lease} {
		if err := r.remake(lease, last, r.ingest); err != nil {
			return err
		}
	}
	return nil
}

// remake makes a lease anew, to hold a resource for that long. Meanwhile another lease holds the resource.
func (r *renewal) remake(lease leases.Lease, last time.Duration, held leases.Resource) error {
	if err := r.store.manager.Delete(r.ctx, lease); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease: %w", err)
	}
	if _, err := r.store.manager.Create(r.ctx, leases.WithID(lease.ID), leases.WithExpiration(last)); err != nil {
		return fmt.Errorf("create lease: %w", err)
	}
	if err := r.store.manager.AddResource(r.ctx, lease, held); err != nil {
		return fmt.Errorf("lease %s: %w", held.ID, err)
	}
	return nil
}

// shorten returns the lease that holds the blob of an upload from now on. If the leases were to last through the Commit, that is the
// second, which then lasts no longer than the client has time. So the blob also goes if this process ends before it deletes the lease.
func (r *renewal) shorten(blob leases.Resource) leases.Lease {
	if !r.prolonged {
		return r.lease
	}
	// An expiry has whole seconds.
	if err := r.remake(r.second, r.store.times.hold+time.Second, blob); err != nil {
		r.store.log.Warn("snapshotter: the lease of a new layer cannot be shortened", "lease", r.lease.ID, "error", err)
		return r.lease
	}
	r.store.release(r.ctx, r.lease)
	short := r.second
	r.second = leases.Lease{} // the upload has no second lease any more
	return short
}

// stop makes the leases anew once more, to last that long, and then no more. An upload that has only just begun is not
// so large that it would take the store longer than the leases last as they are.
func (r *renewal) stop(last time.Duration) error {
	r.halt()
	if time.Since(r.begun) < r.store.times.renew/4 {
		return nil
	}
	r.prolonged = true
	return r.renew(last)
}

func (r *renewal) halt() {
	r.stopOne.Do(func() { close(r.stopped) })
	r.running.Wait()
}

// end deletes the second lease.
func (r *renewal) end() {
	r.halt()
	if r.second.ID != "" {
		r.store.release(r.ctx, r.second)
	}
}
