package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// hookedBackend does something before it clones.
type hookedBackend struct {
	cowcommon.Backend
	beforeClone func()
}

func (b *hookedBackend) Unwrap() cowcommon.Backend { return b.Backend }

func (b *hookedBackend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	if b.beforeClone != nil {
		b.beforeClone()
	}
	return b.Backend.Clone(ctx, name, source, opts)
}

// newHookedHost makes a host on a hooked backend.
func newHookedHost(t *testing.T, fs filesystem, opts Options) (*host, *hookedBackend) {
	hooked := &hookedBackend{}
	h := newHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := fs(t)
		return mnt, func(home string) (_ cowcommon.Backend, err error) {
			hooked.Backend, err = open(home)
			return hooked, err
		}
	}, opts)
	return h, hooked
}

// TestSnapshotBeingMade: clients see only complete snapshots. A client that asks for a snapshot in the making waits,
// as long as its own context lets it.
func TestSnapshotBeingMade(t *testing.T) {
	h, hooked := newHookedHost(t, onBtrfs(testfs.WithSimpleQuota()), Options{})
	h.image("image")
	begun, goOn := make(chan struct{}), make(chan struct{})
	hooked.beforeClone = func() { close(begun); <-goOn }
	letGoOn := sync.OnceFunc(func() { close(goOn) })
	defer letGoOn()
	made := make(chan error, 1)
	go func() {
		_, err := h.Prepare(context.WithoutCancel(t.Context()), "active", "image")
		made <- err
	}()
	testfs.Begun(t, begun, made)
	hooked.beforeClone = nil

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, ask := range map[string]func(ctx context.Context) error{
		"prepare": func(ctx context.Context) error { _, err := h.Prepare(ctx, "active", "image"); return err },
		"view":    func(ctx context.Context) error { _, err := h.View(ctx, "active", "image"); return err },
		"stat":    func(ctx context.Context) error { _, err := h.Stat(ctx, "active"); return err },
		"mounts":  func(ctx context.Context) error { _, err := h.Mounts(ctx, "active"); return err },
		"usage":   func(ctx context.Context) error { _, err := h.Usage(ctx, "active"); return err },
		"update":  func(ctx context.Context) error { _, err := h.Update(ctx, snapshots.Info{Name: "active"}); return err },
		"commit":  func(ctx context.Context) error { return h.Commit(ctx, "committed", "active") },
		"remove":  func(ctx context.Context) error { return h.Remove(ctx, "active") },
	} {
		require.ErrorIs(t, ask(ended), context.Canceled, name)
	}
	second := make(chan error, 1)
	go func() {
		_, err := h.Prepare(t.Context(), "active", "image")
		second <- err
	}()
	letGoOn()
	require.NoError(t, testfs.Receive(t, made))
	require.ErrorIs(t, testfs.Receive(t, second), errdefs.ErrAlreadyExists)
	h.write("active", "file", []byte("text"))
}

// TestMountVanishesDuringCommit: Commit finds a volume in use, and when it has it cloned, which seals it, it is not
// in use any more. Whether Commit then succeeds or fails, nothing is left in between.
func TestMountVanishesDuringCommit(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprintf("fails %t", fails), func(t *testing.T) {
			h, hooked := newHookedHost(t, onBtrfs(testfs.WithSimpleQuota()), Options{DefaultLimit: quota.Limit{Bytes: 16 * mib}})
			h.image("image")
			_, unmount := h.mountAt(h.prepare("active", "image"))
			h.write("active", "file", []byte("text"))
			hooked.beforeClone = func() {
				hooked.beforeClone = nil
				unmount()
				if fails {
					h.prepare("committed", "image") // by another client
				}
			}
			err := h.Commit(t.Context(), "committed", "active")
			if fails {
				require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
				h.write("active", "more", nil)
				require.NoError(t, h.Remove(t.Context(), "committed"))
				h.commit("committed", "active")
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, h.Cleanup(t.Context()))
			assert.Equal(t, []string{"committed", "image"}, h.keys())
			assert.Len(t, h.volumes(), 2)
			assert.Equal(t, "text", h.content("committed", "file"))
			require.NoError(t, h.restart(nil))
			assert.Empty(t, h.Lost())
			assert.Len(t, h.volumes(), 2)
		})
	}
}

// TestOutcomeUnknown has each transaction of each operation fail, before or after it was written, once or twice. The
// volumes that the metadata names exist afterwards, and others do not. A failed operation can be repeated.
func TestOutcomeUnknown(t *testing.T) {
	h := newHost(t, Options{})
	ctx := t.Context()
	h.image("image")
	for name, do := range map[string]func() error{
		"prepare": func() error { _, err := h.Prepare(ctx, "new", "image"); return err },
		"view":    func() error { _, err := h.View(ctx, "new", "image"); return err },
		"commit":  func() error { return h.Commit(ctx, "new", "active") },
		"commit mounted": func() error {
			mounts, err := h.Mounts(ctx, "active")
			if errdefs.IsNotFound(err) {
				return h.Commit(ctx, "new", "active")
			}
			require.NoError(t, err)
			_, unmount := h.mountAt(mounts)
			defer unmount()
			return h.Commit(ctx, "new", "active")
		},
		"remove": func() error { return h.Remove(ctx, "active") },
	} {
		for _, written := range []bool{false, true} {
			for _, times := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s, written %t, %d times", name, written, times), func(t *testing.T) {
					for nth := 1; ; nth++ {
						require.Less(t, nth, 10)
						h.prepare("active", "image")
						came := h.failCommits(nth, times, unix.EIO, written)
						err := do()
						h.commitTx = (*bolt.Tx).Commit
						if times == 1 {
							assert.NoError(t, err, "the second try tells")
						}
						if err != nil {
							assert.ErrorIs(t, err, unix.EIO)
							if err = do(); err != nil { // it has been done, as it turns out
								assert.True(t, errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err), "%v", err)
							}
						}
						require.NoError(t, h.Cleanup(ctx))
						require.NoError(t, h.crash())
						checkAgreement(t, h)
						assert.Empty(t, h.Lost())
						removeAll(t, h, "image")
						require.NoError(t, h.Cleanup(ctx))
						assert.Len(t, h.volumes(), 1)
						if !came() {
							return
						}
					}
				})
			}
		}
	}
}

// failCommits makes transactions fail from the nth of those that come. written says whether they are written all the
// same. came reports whether there were as many.
func (h *host) failCommits(nth, times int, fault error, written bool) (came func() bool) {
	n := 0
	h.commitTx = func(tx *bolt.Tx) error {
		if n++; n < nth || n >= nth+times {
			return tx.Commit()
		}
		if written {
			return errors.Join(tx.Commit(), fault)
		}
		return errors.Join(tx.Rollback(), fault)
	}
	return func() bool { return n >= nth }
}

// TestReserve: if metadata cannot be written in place, the reserve is given up, once it is needed.
func TestReserve(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	h.prepare("active", "image")
	require.FileExists(t, h.reserve.path)
	h.failCommits(1, 1, unix.ENOSPC, false)
	require.NoError(t, h.Remove(t.Context(), "active"))
	h.commitTx = (*bolt.Tx).Commit
	require.NoFileExists(t, h.reserve.path)
	require.NoError(t, h.Cleanup(t.Context()))
	require.FileExists(t, h.reserve.path)
}

// TestCancelledPrepare: whenever the context ends, Prepare has either succeeded or left nothing.
func TestCancelledPrepare(t *testing.T) {
	h, hooked := newHookedHost(t, onBtrfs(), Options{})
	h.image("image")
	before := h.state()
	ctx, cancel := context.WithCancel(t.Context())
	hooked.beforeClone = cancel
	_, err := h.Prepare(ctx, "new", "image")
	if err != nil {
		assert.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, before, h.state())
	} else {
		h.write("new", "file", nil)
	}
	hooked.beforeClone = nil
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	before = h.state()
	if _, err = h.Prepare(ended, "other", "image"); err != nil {
		assert.Equal(t, before, h.state())
	}
}

// TestCommitWhileCommitFails commits a snapshot while an earlier commit of it is undone, which leaves it another volume.
func TestCommitWhileCommitFails(t *testing.T) {
	ctx := t.Context()
	h := newHost(t, Options{})
	h.prepare("active", "")
	h.write("active", "file", []byte("content"))
	volume := h.volume("active")
	release, err := h.filling.Claim(ctx, volume) // the earlier one has it
	require.NoError(t, err)
	committed := make(chan error, 1)
	go func() { committed <- h.Commit(ctx, "image", "active") }()
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, cowcommon.Seal(ctx, h.backend, volume))
	v, err := h.backend.Stat(ctx, volume)
	require.NoError(t, err)
	require.NoError(t, h.thaw(ctx, "active", v))
	require.NoError(t, h.Cleanup(ctx))
	release()
	require.NoError(t, testfs.Receive(t, committed))
	assert.NotEqual(t, volume, h.volume("image"))
	h.prepare("copy", "image")
	assert.Equal(t, "content", h.content("copy", "file"))
}
