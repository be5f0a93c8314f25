package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

var errFault = errors.New("fault")

// faultyBackend fails in the call with a number, before or after it has done its work.
type faultyBackend struct {
	cowcommon.Backend
	left  atomic.Int64 // calls until the fault; below 0: none comes
	after bool
}

var (
	_ cowcommon.Sealer      = (*faultyBackend)(nil)
	_ cowcommon.SpecMounter = (*faultyBackend)(nil)
	_ cowcommon.Limiter     = (*faultyBackend)(nil)
	_ cowcommon.Keeper      = (*faultyBackend)(nil)
)

func (b *faultyBackend) Unwrap() cowcommon.Backend { return b.Backend }

func (b *faultyBackend) arm(n int, after bool) { b.after = after; b.left.Store(int64(n)) }

// disarm reports whether the fault has come.
func (b *faultyBackend) disarm() bool { return b.left.Swap(-1) < 0 }

func (b *faultyBackend) call(do func() error) error {
	fault := b.left.Load() >= 0 && b.left.Add(-1) < 0
	if fault && !b.after {
		return errFault
	}
	if err := do(); err != nil || !fault {
		return err
	}
	return errFault
}

func (b *faultyBackend) Create(ctx context.Context, name string, opts cowcommon.VolumeOptions) error {
	return b.call(func() error { return b.Backend.Create(ctx, name, opts) })
}

func (b *faultyBackend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	return b.call(func() error { return b.Backend.Clone(ctx, name, source, opts) })
}

func (b *faultyBackend) Seal(ctx context.Context, name string) error {
	return b.call(func() error { return cowcommon.Seal(ctx, b.Backend, name) })
}

func (b *faultyBackend) MountSpec(ctx context.Context, name string, readOnly bool) (spec cowcommon.MountSpec, err error) {
	mounter, ok := cowcommon.As[cowcommon.SpecMounter](b.Backend)
	if !ok {
		return spec, errdefs.ErrNotImplemented
	}
	err = b.call(func() error { spec, err = mounter.MountSpec(ctx, name, readOnly); return err })
	return spec, err
}

func (b *faultyBackend) CheckMountSpec() error { return nil }

func (b *faultyBackend) Remove(ctx context.Context, name string) error {
	return b.call(func() error { return b.Backend.Remove(ctx, name) })
}

func (b *faultyBackend) Sync(ctx context.Context, name string) error {
	return b.call(func() error { return b.Backend.Sync(ctx, name) })
}

func (b *faultyBackend) Stat(ctx context.Context, name string) (v cowcommon.Volume, err error) {
	err = b.call(func() error { v, err = b.Backend.Stat(ctx, name); return err })
	return v, err
}

func (b *faultyBackend) Keep(ctx context.Context, name string) (kept cowcommon.Kept, err error) {
	err = b.call(func() error {
		kept, err = cowcommon.Keep(ctx, b.Backend, name)
		return err
	})
	if err != nil && kept != nil { // that of an error is the callee's to close
		err = errors.Join(err, kept.Close())
	}
	return faultyKept{kept, b}, err
}

type faultyKept struct {
	cowcommon.Kept
	b *faultyBackend
}

func (k faultyKept) Restore(ctx context.Context) error {
	return k.b.call(func() error { return k.Kept.Restore(ctx) })
}

func (b *faultyBackend) Usage(ctx context.Context, name string) (u quota.Usage, err error) {
	err = b.call(func() error { u, err = cowcommon.Usage(ctx, b.Backend, name); return err })
	return u, err
}

func (b *faultyBackend) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	return cowcommon.SetLimit(ctx, b.Backend, name, limit)
}

// TestFaults lets each call of the backend in each operation fail. An operation that fails has changed nothing that
// a client could see, and leaves nothing behind that Cleanup does not destroy.
func TestFaults(t *testing.T) {
	var backend *faultyBackend
	h := newHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := onBtrfs()(t)
		return mnt, func(home string) (cowcommon.Backend, error) {
			b, err := open(home)
			backend = &faultyBackend{Backend: b}
			backend.disarm()
			return backend, err
		}
	}, Options{})
	h.image("image")
	undo := func(key string) func() {
		return func() { require.NoError(t, h.Remove(t.Context(), key)) }
	}
	for name, do := range map[string]func() error{
		"prepare":                func() error { _, err := h.Prepare(t.Context(), "new", "image"); return err },
		"prepare without parent": func() error { _, err := h.Prepare(t.Context(), "new", ""); return err },
		"view":                   func() error { _, err := h.View(t.Context(), "new", "image"); return err },
		"view of nothing":        func() error { _, err := h.View(t.Context(), "new", ""); return err },
		"commit":                 func() error { return h.Commit(t.Context(), "new", "active") },
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %t", name, after), func(t *testing.T) {
				for n := 0; ; n++ {
					require.Less(t, n, 20)
					h.prepare("active", "image")
					require.NoError(t, h.Cleanup(t.Context()))
					keys, volumes := h.keys(), len(h.volumes())

					backend.arm(n, after)
					err := do()
					came := backend.disarm()
					if err != nil {
						assert.ErrorIs(t, err, errFault)
						require.NoError(t, h.Cleanup(t.Context()))
						assert.Equal(t, keys, h.keys(), "call %d", n)
						assert.Len(t, h.volumes(), volumes, "call %d", n)
						h.write("active", "file", nil)
					} else {
						undo("new")()
					}
					if _, err := h.Stat(t.Context(), "active"); err == nil {
						undo("active")()
					}
					if !came {
						return // there are fewer calls
					}
				}
			})
		}
	}
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Len(t, h.volumes(), 1)

	// A volume that cannot be destroyed is an error of Cleanup, which does the rest and tries again later.
	h.prepare("one", "")
	h.prepare("two", "")
	undo("one")()
	undo("two")()
	backend.arm(0, false)
	assert.ErrorIs(t, h.Cleanup(t.Context()), errFault)
	assert.Len(t, h.volumes(), 2)
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Len(t, h.volumes(), 1)
}
