package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// uploadTime is how long an upload may take. Its lease ends with it, and expires after that time only if the daemon
	// is killed in between.
	uploadTime = time.Hour
	// holdTime is how long a blob is held for the client to refer to it.
	holdTime = 10 * time.Second
)

// WithLeases makes Compare hold what it makes by leases of its own where a request comes without one: containerd passes
// the namespace of a request on to proxy plugins, and not the lease, so that a blob could be collected as garbage before
// the client refers to it. An upload is held until it ends, and the blob for ten seconds more.
func WithLeases(manager leases.Manager) DifferOption {
	return func(d *Differ) { d.store = leasedStore{d.store, manager, holdTime, d.snapshotter.log} }
}

// leasedStore is a content store whose uploads, and the blobs that they become, are held by leases.
type leasedStore struct {
	content.Store
	manager leases.Manager
	hold    time.Duration
	log     *slog.Logger
}

// Writer implements content.Ingester. ctx is that of all requests of the writer, also of its Commit.
func (s leasedStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if _, ok := leases.FromContext(ctx); ok {
		return s.Store.Writer(ctx, opts...)
	}
	lease, err := s.manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(uploadTime))
	if err != nil {
		return nil, fmt.Errorf("create lease: %w", err)
	}
	w, err := s.Store.Writer(leases.WithLease(ctx, lease.ID), opts...)
	if err != nil {
		s.release(ctx, lease)
		return nil, err
	}
	return &leasedWriter{Writer: w, store: s, ctx: ctx, lease: lease}, nil
}

// release deletes a lease, also when the request has been cancelled. Where that fails, it says so: the lease expires.
func (s leasedStore) release(ctx context.Context, lease leases.Lease) {
	ctx, cancel := toGiveUp(ctx)
	defer cancel()
	if err := s.manager.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("snapshotter: a lease of a layer that was made is left to expire", "lease", lease.ID, "error", err)
	}
}

// holdBlob holds a blob for a while. The lease expires at the end of it, and is deleted too: containerd leaves an
// expired one to the next collection.
func (s leasedStore) holdBlob(ctx context.Context, blob digest.Digest) error {
	lease, err := s.manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(s.hold))
	if err != nil {
		return fmt.Errorf("create lease: %w", err)
	}
	if err := s.manager.AddResource(ctx, lease, leases.Resource{ID: blob.String(), Type: "content"}); err != nil {
		s.release(ctx, lease)
		return fmt.Errorf("lease %s: %w", blob, err)
	}
	time.AfterFunc(s.hold, func() { s.release(ctx, lease) })
	return nil
}

// leasedWriter is an upload that a lease holds until it is closed.
type leasedWriter struct {
	content.Writer
	store leasedStore
	ctx   context.Context //nolint:containedctx // that of the requests of the writer
	lease leases.Lease
}

// Commit implements content.Writer.
func (w *leasedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	committed := w.Writer.Commit(ctx, size, expected, opts...)
	if committed != nil && !errdefs.IsAlreadyExists(committed) {
		return committed
	}
	if err := w.store.holdBlob(w.ctx, expected); err != nil {
		return err
	}
	return committed // the blob may have been there
}

// Close implements content.Writer.
func (w *leasedWriter) Close() error {
	err := w.Writer.Close()
	w.store.release(w.ctx, w.lease)
	return err
}
