package tocontainerd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

var errKilled = errors.New("killed")

// killer ends a process at one of its requests that change something: before containerd gets it, or before the answer
// comes. From then on no request gets through, so that the process cannot clean up either.
type killer struct {
	left atomic.Int64 // steps; there are two in a request
	end  context.CancelCauseFunc
}

// killAt makes a killer of the process that works in a context.
func killAt(ctx context.Context, step int64) (context.Context, *killer) {
	k := new(killer)
	k.left.Store(step)
	ctx, k.end = context.WithCancelCause(ctx)
	return ctx, k
}

func (k *killer) dead() error {
	if k.left.Load() <= 0 {
		return errKilled
	}
	return nil
}

func (k *killer) request(do func() error) error {
	if k.step() {
		return errKilled
	}
	if err := do(); !k.step() {
		return err
	}
	return errKilled
}

func (k *killer) step() (last bool) {
	last = k.left.Add(-1) <= 0
	if last {
		k.end(errKilled)
	}
	return last
}

// mortal are services of which a killer decides.
func (k *killer) mortal(s *services) *services {
	return &services{
		content: mortalContent{s.content, k}, snapshots: mortalSnapshots{s.snapshots, k},
		images: mortalImages{s.images, k}, leases: mortalLeases{s.leases, k}, offers: s.offers, root: s.root,
	}
}

type mortalSnapshots struct {
	snapshots.Snapshotter
	k *killer
}

func (m mortalSnapshots) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) (mounts []mount.Mount, err error) {
	err = m.k.request(func() error { mounts, err = m.Snapshotter.Prepare(ctx, key, parent, opts...); return err })
	return mounts, err
}

func (m mortalSnapshots) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (mounts []mount.Mount, err error) {
	err = m.k.request(func() error { mounts, err = m.Snapshotter.View(ctx, key, parent, opts...); return err })
	return mounts, err
}

func (m mortalSnapshots) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return m.k.request(func() error { return m.Snapshotter.Commit(ctx, name, key, opts...) })
}

func (m mortalSnapshots) Remove(ctx context.Context, key string) error {
	return m.k.request(func() error { return m.Snapshotter.Remove(ctx, key) })
}

func (m mortalSnapshots) Update(ctx context.Context, info snapshots.Info, paths ...string) (updated snapshots.Info, err error) {
	err = m.k.request(func() error { updated, err = m.Snapshotter.Update(ctx, info, paths...); return err })
	return updated, err
}

func (m mortalSnapshots) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if err := m.k.dead(); err != nil {
		return snapshots.Info{}, err
	}
	return m.Snapshotter.Stat(ctx, key)
}

func (m mortalSnapshots) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	if err := m.k.dead(); err != nil {
		return err
	}
	return m.Snapshotter.Walk(ctx, fn, filters...)
}

type mortalContent struct {
	content.Store
	k *killer
}

func (m mortalContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var w content.Writer
	err := m.k.request(func() (err error) { w, err = m.Store.Writer(ctx, opts...); return err })
	if err != nil {
		if w != nil {
			err = errors.Join(err, w.Close())
		}
		return nil, err
	}
	return mortalWriter{w, m.k}, nil
}

func (m mortalContent) Abort(ctx context.Context, ref string) error {
	return m.k.request(func() error { return m.Store.Abort(ctx, ref) })
}

func (m mortalContent) Update(ctx context.Context, info content.Info, paths ...string) (updated content.Info, err error) {
	err = m.k.request(func() error { updated, err = m.Store.Update(ctx, info, paths...); return err })
	return updated, err
}

func (m mortalContent) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	if err := m.k.dead(); err != nil {
		return err
	}
	return m.Store.Walk(ctx, fn, filters...)
}

type mortalWriter struct {
	content.Writer
	k *killer
}

func (m mortalWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	return m.k.request(func() error { return m.Writer.Commit(ctx, size, expected, opts...) })
}

type mortalImages struct {
	images.Store
	k *killer
}

func (m mortalImages) Create(ctx context.Context, image images.Image) (made images.Image, err error) {
	err = m.k.request(func() error { made, err = m.Store.Create(ctx, image); return err })
	return made, err
}

func (m mortalImages) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	return m.k.request(func() error { return m.Store.Delete(ctx, name, opts...) })
}

type mortalLeases struct {
	leases.Manager
	k *killer
}

func (m mortalLeases) Create(ctx context.Context, opts ...leases.Opt) (lease leases.Lease, err error) {
	err = m.k.request(func() error { lease, err = m.Manager.Create(ctx, opts...); return err })
	return lease, err
}

func (m mortalLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	return m.k.request(func() error { return m.Manager.Delete(ctx, lease, opts...) })
}

func (m mortalLeases) AddResource(ctx context.Context, lease leases.Lease, resource leases.Resource) error {
	return m.k.request(func() error { return m.Manager.AddResource(ctx, lease, resource) })
}

func (m mortalLeases) DeleteResource(ctx context.Context, lease leases.Lease, resource leases.Resource) error {
	return m.k.request(func() error { return m.Manager.DeleteResource(ctx, lease, resource) })
}

// TestKilled kills the migration at its requests, and collects garbage. Then it goes on, or is undone. Undo is killed too.
func TestKilled(t *testing.T) {
	h := newHost(t)
	h.newSource(overlays)
	dir := filepath.Join(h.dockerRoot(), "containers", theContainer)
	before, empty := readAll(t, dir), h.state(Moby)

	_, alive := killAt(t.Context(), 1<<40)
	target := newTarget(h.target(h.options(Moby)).opts, alive.mortal(h.services()))
	h.run(target)
	steps := 1<<40 - alive.left.Load()
	whole := h.state(Moby)
	_, err := h.migration(target).Undo(t.Context(), nil)
	require.NoError(t, err)
	undoSteps := 1<<40 - alive.left.Load() - steps

	stride := steps / 24
	if testfs.Long() {
		stride = 1
	}
	for at := int64(1); at < steps; at += stride {
		t.Run(fmt.Sprintf("run at %d of %d", at, steps), func(t *testing.T) {
			ctx, k := killAt(t.Context(), at)
			killed := newTarget(target.opts, k.mortal(h.services()))
			_, err := h.migration(killed).Run(ctx, nil)
			require.ErrorIs(t, err, errKilled)
			h.collect()
			again := h.target(target.opts)
			if at/stride%2 == 0 {
				h.run(again)
				assert.Equal(t, whole, h.state(Moby))
				_, err := h.migration(again).Verify(t.Context(), nil)
				require.NoError(t, err)
				ctx, k = killAt(t.Context(), max(at%undoSteps, 1))
				killed = newTarget(target.opts, k.mortal(h.services()))
				_, err = h.migration(killed).Undo(ctx, nil)
				require.ErrorIs(t, err, errKilled)
				h.collect()
			}
			_, err = h.migration(again).Undo(t.Context(), nil)
			requireNoProblem(t, err)
			assert.Equal(t, empty, h.state(Moby))
			assert.Equal(t, before, readAll(t, dir))
		})
	}
}

// requireNoProblem fails the test with all problems of an error.
func requireNoProblem(t *testing.T, err error) {
	t.Helper()
	var partial *migrate.PartialError
	if errors.As(err, &partial) {
		for _, p := range partial.Problems {
			t.Errorf("%s %s: %v", p.What, p.ID, p.Err)
		}
	}
	require.NoError(t, err)
}
