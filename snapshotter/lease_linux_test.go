package snapshotter

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpcmeta "google.golang.org/grpc/metadata"

	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// leaseHost is a snapshotter, and containerd's metadata with its leases and its collection of garbage.
type leaseHost struct {
	*host
	db      *metadata.DB
	manager leases.Manager
	store   content.Store // of db, behind a socket
	upper   []mount.Mount // of a snapshot with a file of 4 MiB
}

func newLeaseHost(t *testing.T) *leaseHost {
	t.Helper()
	blobs, err := local.NewStore(t.TempDir())
	require.NoError(t, err)
	h := &leaseHost{host: newHost(t, Options{})}
	file, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	h.db = metadata.NewDB(file, blobs, nil)
	h.manager = metadata.NewLeaseManager(h.db)
	h.store = dialContent(t, h.db.ContentStore())
	h.upper = h.prepare("upper", "")
	noise := make([]byte, 4*mib)
	_, err = rand.NewChaCha8([32]byte{}).Read(noise)
	require.NoError(t, err)
	h.write("upper", "file", noise)
	return h
}

// differ makes one with leases of those times.
func (h *leaseHost) differ(store content.Store, manager leases.Manager, times leaseTimes) *Differ {
	d := NewDiffer(h.Snapshotter, store)
	d.store = leasedStore{store, manager, times, h.Snapshotter}
	return d
}

func (h *leaseHost) collect(ctx context.Context) {
	h.t.Helper()
	_, err := h.db.GarbageCollect(ctx)
	require.NoError(h.t, err)
}

// isThere reports whether a blob survives a collection.
func (h *leaseHost) isThere(ctx context.Context, blob digest.Digest) bool {
	h.t.Helper()
	h.collect(ctx)
	_, err := h.db.ContentStore().Info(ctx, blob)
	if !errdefs.IsNotFound(err) {
		require.NoError(h.t, err)
	}
	return err == nil
}

func (h *leaseHost) leases(ctx context.Context) []leases.Lease {
	h.t.Helper()
	all, err := h.manager.List(ctx)
	require.NoError(h.t, err)
	return all
}

// left lists blobs and uploads that survive a collection.
func (h *leaseHost) left(ctx context.Context) (left []string) {
	h.t.Helper()
	h.collect(ctx)
	require.NoError(h.t, h.db.ContentStore().Walk(ctx, func(info content.Info) error {
		left = append(left, info.Digest.String())
		return nil
	}))
	uploads, err := h.db.ContentStore().ListStatuses(ctx)
	require.NoError(h.t, err)
	for _, upload := range uploads {
		left = append(left, upload.Ref)
	}
	return left
}

// TestLeaseTimes: a client on a busy machine has twenty seconds to refer to a blob. BuildKit's tests wait 25 seconds until no blob is
// left, of which a collection needs some. The lease, which is renewed until the upload ends, lasts as long.
func TestLeaseTimes(t *testing.T) {
	times := defaultLeaseTimes
	assert.Equal(t, 20*time.Second, times.hold)
	assert.GreaterOrEqual(t, times.upload-times.renew, times.hold)
}

// TestCompareLease has containerd's garbage collection run when a blob has been made that nothing refers to yet.
func TestCompareLease(t *testing.T) {
	h := newLeaseHost(t)
	t.Run("without", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "none")
		desc, err := NewDiffer(h.Snapshotter, h.store).Compare(ctx, nil, h.upper)
		require.NoError(t, err)
		assert.False(t, h.isThere(ctx, desc.Digest))
		assert.Empty(t, h.leases(ctx))
	})
	t.Run("own", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "own")
		times := defaultLeaseTimes
		times.hold = 3 * time.Second
		differ := h.differ(h.store, h.manager, times)
		for again := range 2 {
			begun := time.Now()
			desc, err := differ.Compare(ctx, nil, h.upper)
			require.NoError(t, err)
			for range again { // makes a blob that is there
				same, err := differ.Compare(ctx, nil, h.upper)
				require.NoError(t, err)
				require.Equal(t, desc.Digest, same.Digest)
			}
			there, all := h.isThere(ctx, desc.Digest), h.leases(ctx)
			if time.Since(begun) < times.hold-time.Second { // else this process had no time
				assert.True(t, there)
				assert.Len(t, all, 1+again)
			}
			require.Eventually(t, func() bool { return len(h.leases(ctx)) == 0 }, testfs.Patience, 10*time.Millisecond)
			assert.Empty(t, h.left(ctx))
		}
	})
	t.Run("failed", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "failed")
		failing := func(io.Writer, string) (io.WriteCloser, error) { return errWriter{unix.EIO}, nil }
		_, err := NewDiffer(h.Snapshotter, h.store, WithLeases(h.manager)).Compare(ctx, nil, h.upper, diff.WithCompressor(failing), diff.WithMediaType("a/b"))
		require.ErrorIs(t, err, unix.EIO)
		assert.Empty(t, h.leases(ctx))
		assert.Empty(t, h.left(ctx))
	})
	t.Run("of the caller", func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "callers")
		given, err := h.manager.Create(ctx, leases.WithID("given"))
		require.NoError(t, err)
		request := grpcmeta.NewIncomingContext(t.Context(), grpcmeta.Pairs(
			namespaces.GRPCHeader, "callers", leases.GRPCHeader, given.ID))
		desc, err := NewDiffer(h.Snapshotter, h.store, WithLeases(h.manager)).Compare(request, nil, h.upper)
		require.NoError(t, err)
		assert.True(t, h.isThere(ctx, desc.Digest))
		all := h.leases(ctx)
		require.Len(t, all, 1)
		assert.Equal(t, "given", all[0].ID)
		require.NoError(t, h.manager.Delete(ctx, given))
		assert.Empty(t, h.left(ctx))
	})
}

// TestCompareReferred: a blob is held until a lease of the client has it. The client can then delete it at once.
func TestCompareReferred(t *testing.T) {
	h := newLeaseHost(t)
	ctx := namespaces.WithNamespace(t.Context(), "referred")
	times := defaultLeaseTimes
	times.hold = time.Hour // beyond the end of the test
	other, err := h.manager.Create(ctx, leases.WithID("other"))
	require.NoError(t, err)
	given, err := h.manager.Create(ctx, leases.WithID("given"))
	require.NoError(t, err)
	desc, err := h.differ(h.store, h.manager, times).Compare(ctx, nil, h.upper)
	require.NoError(t, err)
	assert.Never(t, func() bool { return len(h.leases(ctx)) < 3 }, 10*clientPauses.First, clientPauses.First)
	require.NoError(t, h.manager.AddResource(ctx, given, leases.Resource{ID: desc.Digest.String(), Type: "content"}))
	require.Eventually(t, func() bool { return len(h.leases(ctx)) == 2 }, testfs.Patience, 10*time.Millisecond)
	assert.True(t, h.isThere(ctx, desc.Digest))
	require.NoError(t, h.manager.Delete(ctx, other))
	require.NoError(t, h.manager.Delete(ctx, given))
	assert.Empty(t, h.left(ctx))
}

// TestCompareReferredByOther: a lease that has a blob which was there before may be that of another client, and end at once.
func TestCompareReferredByOther(t *testing.T) {
	h := newLeaseHost(t)
	ctx := namespaces.WithNamespace(t.Context(), "other")
	given, err := h.manager.Create(ctx, leases.WithID("given"))
	require.NoError(t, err)
	_, err = NewDiffer(h.Snapshotter, h.store, WithLeases(h.manager)).Compare(leases.WithLease(ctx, given.ID), nil, h.upper)
	require.NoError(t, err)
	times := defaultLeaseTimes
	times.hold = time.Hour // beyond the end of the test
	desc, err := h.differ(h.store, h.manager, times).Compare(ctx, nil, h.upper)
	require.NoError(t, err)
	assert.Never(t, func() bool { return len(h.leases(ctx)) < 2 }, 10*clientPauses.First, clientPauses.First)
	require.NoError(t, h.manager.Delete(ctx, given))
	assert.True(t, h.isThere(ctx, desc.Digest))
}

// TestCompareCollected has the garbage collection run before and after each request to the store, while the leases are
// made anew all the time.
func TestCompareCollected(t *testing.T) {
	h := newLeaseHost(t)
	for name, withLease := range map[string]func(ctx context.Context) context.Context{
		"own": func(ctx context.Context) context.Context { return ctx },
		"of the caller": func(ctx context.Context) context.Context {
			given, err := h.manager.Create(ctx, leases.WithID("given"))
			require.NoError(t, err)
			return leases.WithLease(ctx, given.ID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := namespaces.WithNamespace(t.Context(), digest.FromString(name).Encoded())
			var requests atomic.Int64
			r := requester{before: func() error { return h.collectNow(ctx) }, after: func() { requests.Add(1); assert.NoError(t, h.collectNow(ctx)) }}
			times := leaseTimes{upload: time.Minute, renew: time.Millisecond, commit: time.Minute, hold: time.Minute}
			differ := h.differ(requestStore{h.store, r}, requestManager{h.manager, r}, times)
			leased := withLease(ctx)
			desc, err := differ.Compare(leased, nil, h.upper)
			require.NoError(t, err)
			assert.True(t, h.isThere(ctx, desc.Digest))
			assert.Greater(t, requests.Load(), int64(5))
		})
	}
}

// TestCompareOfThere removes a blob's last reference right after the store has said that the blob exists.
func TestCompareOfThere(t *testing.T) {
	h := newLeaseHost(t)
	ctx := namespaces.WithNamespace(t.Context(), "there")
	given, err := h.manager.Create(ctx, leases.WithID("given"))
	require.NoError(t, err)
	desc, err := NewDiffer(h.Snapshotter, h.store, WithLeases(h.manager)).Compare(leases.WithLease(ctx, given.ID), nil, h.upper)
	require.NoError(t, err)
	deleted := false
	r := requester{before: func() error { return nil }, after: func() {
		deleted = true
		assert.NoError(t, h.manager.Delete(ctx, given))
		assert.NoError(t, h.collectNow(ctx))
	}}
	commits := commitStore{h.store, r}
	times := defaultLeaseTimes
	times.hold = time.Hour // beyond the end of the test
	same, err := h.differ(commits, h.manager, times).Compare(ctx, nil, h.upper)
	require.NoError(t, err)
	assert.True(t, deleted)
	assert.Equal(t, desc, same)
	assert.True(t, h.isThere(ctx, desc.Digest))
}

// commitStore is a store whose uploads have a requester around their Commit.
type commitStore struct {
	content.Store
	r requester
}

func (s commitStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	return commitWriter{w, s.r}, err
}

type commitWriter struct {
	content.Writer
	r requester
}

func (w commitWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	return w.r.request(func() error { return w.Writer.Commit(ctx, size, expected, opts...) })
}

// TestCompareRenews: an upload may take longer than its leases last. It is tried again where this process had no time to renew them.
func TestCompareRenews(t *testing.T) {
	h := newLeaseHost(t)
	times := leaseTimes{upload: 3 * time.Second, renew: 300 * time.Millisecond, commit: time.Minute, hold: time.Minute}
	for n := range 10 {
		ctx := namespaces.WithNamespace(t.Context(), fmt.Sprint("slow-", n))
		c := &collecting{pause: 2 * times.upload, collect: func() error { return h.collectNow(ctx) }}
		desc, err := h.differ(h.store, h.manager, times).Compare(ctx, nil, h.upper, diff.WithCompressor(func(w io.Writer, _ string) (io.WriteCloser, error) {
			c.Writer = w
			return c, nil
		}), diff.WithMediaType("a/b"))
		if err == nil && h.isThere(ctx, desc.Digest) {
			return
		}
		require.Greater(t, c.slowest, times.upload-2*times.renew, "%v", err)
	}
	require.FailNow(t, "this process never has time")
}

// collecting is a compressor that collects garbage for a time before the end.
type collecting struct {
	io.Writer
	pause, slowest time.Duration // the slowest of its steps
	collect        func() error
}

func (c *collecting) Close() (err error) {
	step := time.Now()
	for end := step.Add(c.pause); err == nil && step.Before(end); {
		time.Sleep(10 * time.Millisecond)
		err = c.collect()
		c.slowest = max(c.slowest, time.Since(step))
		step = time.Now()
	}
	return err
}

// TestCompareCancelled: wherever a request is cancelled, no lease is left, and no upload or blob that survives a collection.
func TestCompareCancelled(t *testing.T) {
	h := newLeaseHost(t)
	for n := int64(0); ; n++ {
		require.Less(t, n, int64(100))
		ctx := namespaces.WithNamespace(t.Context(), fmt.Sprint("cancelled-", n))
		cancelled, cancel := context.WithCancel(ctx)
		var requests atomic.Int64
		r := requester{before: func() error { return nil }, after: func() {
			if requests.Add(1) == n {
				cancel()
			}
		}}
		times := leaseTimes{upload: time.Minute, renew: time.Minute, commit: time.Minute, hold: time.Millisecond}
		_, err := h.differ(requestStore{h.store, r}, requestManager{h.manager, r}, times).Compare(cancelled, nil, h.upper)
		done := cancelled.Err() == nil
		cancel()
		if done {
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool { return len(h.leases(ctx)) == 0 }, testfs.Patience, time.Millisecond, "request %d", n)
		assert.Eventually(t, func() bool { return len(h.left(ctx)) == 0 }, testfs.Patience, time.Millisecond, "request %d", n)
		if done && n > 0 {
			break
		}
	}
}

// TestCompareKilled: the uploads of a killed process go when their leases have expired. In this test the process is
// one whose requests all fail from then on.
func TestCompareKilled(t *testing.T) {
	h := newLeaseHost(t)
	times := leaseTimes{upload: time.Second, renew: 100 * time.Millisecond, commit: time.Second, hold: time.Second}
	for _, after := range []int64{1, 2, 3, 5, 7, 9} {
		ctx := namespaces.WithNamespace(t.Context(), fmt.Sprint("killed-", after))
		var requests atomic.Int64
		r := requester{before: func() error {
			if requests.Add(1) > after {
				return unix.EPIPE
			}
			return nil
		}, after: func() {}}
		_, err := h.differ(requestStore{h.store, r}, requestManager{h.manager, r}, times).Compare(ctx, nil, h.upper)
		if err != nil || after <= 3 { // later ones may be renewals
			require.ErrorIs(t, err, unix.EPIPE, "request %d", after)
		}
		require.Eventually(t, func() bool {
			return len(h.left(ctx)) == 0 && len(h.leases(ctx)) == 0
		}, times.upload+testfs.Patience, 10*time.Millisecond, "request %d", after)
	}
}

// TestCommitTime: a slow disk needs longer for a large layer, however fast that was uploaded. The leases of a small one stay as they are.
func TestCommitTime(t *testing.T) {
	assert.Less(t, defaultLeaseTimes.toCommit(150*mib), defaultLeaseTimes.upload-5*time.Second)
	assert.GreaterOrEqual(t, defaultLeaseTimes.toCommit(3<<30), 6*time.Minute)
	h := newLeaseHost(t)
	for name, c := range map[string]struct {
		commit time.Duration
		leases int
	}{
		"small": {0, 1},
		"large": {2 * time.Hour, 2},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := namespaces.WithNamespace(t.Context(), name)
			var held []leases.Lease
			commits := commitStore{h.store, requester{before: func() (err error) { held, err = h.manager.List(ctx); return err }, after: func() {}}}
			times := leaseTimes{upload: time.Hour, renew: time.Hour, commit: c.commit, hold: time.Hour}
			_, err := h.differ(commits, h.manager, times).Compare(ctx, nil, h.upper)
			require.NoError(t, err)
			require.Len(t, held, c.leases)
			for _, lease := range held {
				assert.Greater(t, untilExpiry(t, lease), c.commit-testfs.Patience)
			}
		})
	}
}

// untilExpiry is how long a lease lasts from now on.
func untilExpiry(t *testing.T, lease leases.Lease) time.Duration {
	t.Helper()
	expires, err := time.Parse(time.RFC3339, lease.Labels["containerd.io/gc.expire"])
	require.NoError(t, err)
	return time.Until(expires)
}

// TestCompareUnanswered: containerd is killed during a Commit, and is away when the leases are to be released. They are released when it
// is back, and their long lives do not matter.
func TestCompareUnanswered(t *testing.T) {
	h := newLeaseHost(t)
	for name, times := range map[string]leaseTimes{
		"small": {upload: time.Hour, renew: time.Hour, hold: time.Hour},
		"large": {upload: time.Hour, renew: time.Hour, commit: 2 * time.Hour, hold: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := namespaces.WithNamespace(t.Context(), name)
			var away atomic.Bool
			answers := requester{before: func() error {
				if away.Load() {
					return unix.EPIPE
				}
				return nil
			}, after: func() {}}
			killed := requester{before: func() error { away.Store(true); return unix.EPIPE }}
			_, err := h.differ(commitStore{requestStore{h.store, answers}, killed}, requestManager{h.manager, answers}, times).Compare(ctx, nil, h.upper)
			require.ErrorIs(t, err, unix.EPIPE)
			assert.NotEmpty(t, h.leases(ctx))
			assert.NotEmpty(t, h.left(ctx))
			away.Store(false)
			require.Eventually(t, func() bool {
				return len(h.leases(ctx)) == 0 && len(h.left(ctx)) == 0
			}, testfs.Patience, 10*time.Millisecond)
		})
	}
}

// TestReleaseEnds: nothing tries to release a lease that has expired, or after Close.
func TestReleaseEnds(t *testing.T) {
	for name, c := range map[string]struct{ lasts, closed, ends time.Duration }{
		"expired": {time.Minute, time.Hour, time.Minute},
		"closed":  {time.Hour, time.Minute, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, last := time.Now(), time.Duration(0)
				silent := requestManager{nil, requester{before: func() error { last = time.Since(begun); return unix.EPIPE }}}
				s := &Snapshotter{log: slog.New(slog.DiscardHandler), background: newBackground()}
				store := leasedStore{manager: silent, snapshotter: s}
				store.release(t.Context(), leases.Lease{ID: "lease"}, c.lasts)
				time.Sleep(c.closed)
				s.background.end()
				assert.InDelta(t, c.ends.Seconds(), last.Seconds(), releasePauses.Longest.Seconds())
				store.release(t.Context(), leases.Lease{ID: "lease"}, c.lasts)
				synctest.Wait() // for the goroutines: there are none
			})
		})
	}
}

// TestCompareLeft: an upload has taken so long that its leases were made to last longer than usual. When Compare has returned, the
// blob is held no longer than the client has time to refer to it. That is so even if the process ends before it deletes the lease.
func TestCompareLeft(t *testing.T) {
	h := newLeaseHost(t)
	ctx := namespaces.WithNamespace(t.Context(), "left")
	var ended atomic.Bool
	r := requester{before: func() error {
		if ended.Load() {
			return unix.EPIPE
		}
		return nil
	}, after: func() {}}
	times := leaseTimes{upload: time.Hour, renew: 100 * time.Millisecond, commit: 2 * time.Hour, hold: 3 * time.Second}
	_, err := h.differ(h.store, requestManager{h.manager, r}, times).Compare(ctx, nil, h.upper, h.untilRenewed(ctx), diff.WithMediaType("a/b"))
	ended.Store(true)
	require.NoError(t, err)
	left := h.leases(ctx)
	require.LessOrEqual(t, len(left), 1, "one of them holds it, unless this process had no time")
	for _, lease := range left {
		assert.LessOrEqual(t, untilExpiry(t, lease), times.hold+time.Second)
		resources, err := h.manager.ListResources(ctx, lease)
		require.NoError(t, err)
		require.Len(t, resources, 1)
		assert.Equal(t, "content", resources[0].Type)
	}
	require.Eventually(t, func() bool {
		return len(h.left(ctx)) == 0 && len(h.leases(ctx)) == 0
	}, times.hold+testfs.Patience, 10*time.Millisecond)
}

// untilRenewed has an upload last until its leases have been made anew.
func (h *leaseHost) untilRenewed(ctx context.Context) diff.Opt {
	return diff.WithCompressor(func(w io.Writer, _ string) (io.WriteCloser, error) {
		return closeAfter{w, func() error {
			for end := time.Now().Add(testfs.Patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if all, err := h.manager.List(ctx); err != nil || len(all) == 2 {
					return err
				}
			}
			return unix.ETIMEDOUT
		}}, nil
	})
}

// closeAfter is a compressor that calls a function when it is closed.
type closeAfter struct {
	io.Writer
	close func() error
}

func (c closeAfter) Close() error { return c.close() }

// collectNow is collect for other goroutines.
func (h *leaseHost) collectNow(ctx context.Context) error {
	_, err := h.db.GarbageCollect(ctx)
	return err
}

// requester is called around each request to a store or manager of leases.
type requester struct {
	before func() error
	after  func()
}

func (r requester) request(do func() error) error {
	if err := r.before(); err != nil {
		return err
	}
	defer r.after()
	return do()
}

type requestStore struct {
	content.Store
	r requester
}

func (s requestStore) Writer(ctx context.Context, opts ...content.WriterOpt) (w content.Writer, err error) {
	err = s.r.request(func() error { w, err = s.Store.Writer(ctx, opts...); return err })
	if err != nil {
		return nil, err
	}
	return requestWriter{w, s.r}, nil
}

func (s requestStore) Info(ctx context.Context, dgst digest.Digest) (info content.Info, err error) {
	err = s.r.request(func() error { info, err = s.Store.Info(ctx, dgst); return err })
	return info, err
}

func (s requestStore) Update(ctx context.Context, info content.Info, fields ...string) (updated content.Info, err error) {
	err = s.r.request(func() error { updated, err = s.Store.Update(ctx, info, fields...); return err })
	return updated, err
}

func (s requestStore) Abort(ctx context.Context, ref string) error {
	return s.r.request(func() error { return s.Store.Abort(ctx, ref) })
}

type requestWriter struct {
	content.Writer
	r requester
}

func (w requestWriter) Write(p []byte) (n int, err error) {
	err = w.r.request(func() error { n, err = w.Writer.Write(p); return err })
	return n, err
}

func (w requestWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	return w.r.request(func() error { return w.Writer.Commit(ctx, size, expected, opts...) })
}

type requestManager struct {
	leases.Manager
	r requester
}

func (m requestManager) Create(ctx context.Context, opts ...leases.Opt) (lease leases.Lease, err error) {
	err = m.r.request(func() error { lease, err = m.Manager.Create(ctx, opts...); return err })
	return lease, err
}

func (m requestManager) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	return m.r.request(func() error { return m.Manager.Delete(ctx, lease, opts...) })
}

func (m requestManager) AddResource(ctx context.Context, lease leases.Lease, resource leases.Resource) error {
	return m.r.request(func() error { return m.Manager.AddResource(ctx, lease, resource) })
}

// dialContent serves a content store, as containerd does, and connects to it.
func dialContent(t testing.TB, store content.Store) content.Store {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "c.sock")
	stop, err := contentstore.Serve(store, socket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stop()) })
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return contentproxy.NewContentStore(conn)
}
