package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/snapshotter"
)

// answerTimeout is how long a request may take, with a restart of the daemon in between.
const answerTimeout = 2 * time.Minute

// snapshot is a client's knowledge of one of its snapshots.
type snapshot struct {
	kind   snapshots.Kind
	parent string
	files  tree
	limit  int  // bytes; 0: none
	lost   bool // the content is not known: it can only be removed
}

// client works on snapshots of its own, and knows the effects of each answered request.
type client struct {
	name    string
	soak    *soak
	rng     *rand.Rand
	conn    *grpc.ClientConn
	s       snapshots.Snapshotter
	differ  snapshotter.DiffService
	made    int
	have    map[string]*snapshot
	removed []string // the latest keys that must not be there
	unknown []string // keys whose request was given up
	done    int      // operations
}

const (
	baseKey      = "base"
	maxSnapshots = 10
	clientLimit  = 1 << 20
)

func newClient(s *soak, name string, seed uint64) (*client, error) {
	conn, err := s.daemon.dial()
	if err != nil {
		return nil, err
	}
	differ, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(snapshotter.DiffService)
	if !ok {
		return nil, errors.New("the client of the diff service does not compare")
	}
	return &client{
		name: name, soak: s, rng: rand.New(rand.NewPCG(seed, 0)), conn: conn,
		s: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed"), differ: differ,
		have: make(map[string]*snapshot),
	}, nil
}

// run works until ctx is done.
func (c *client) run(ctx context.Context) error {
	operations := []struct {
		weight int
		name   string
		run    func() error
	}{
		{8, "prepare", c.prepare}, {8, "write", c.write}, {5, "commit", c.commit}, {5, "view", c.view},
		{6, "remove", c.remove}, {2, "cleanup", c.cleanup}, {3, "usage", c.usage}, {2, "walk", c.walk},
		{4, "compare", c.compare}, {2, "reach limit", c.reachLimit}, {3, "stat", c.stat},
	}
	total := 0
	for _, op := range operations {
		total += op.weight
	}
	for ctx.Err() == nil {
		at := c.rng.IntN(total)
		for _, op := range operations {
			if at -= op.weight; at >= 0 {
				continue
			}
			if err := op.run(); err != nil {
				return fmt.Errorf("%s, operation %d: %s: %w", c.name, c.done, op.name, err)
			}
			c.done++
			break
		}
	}
	return nil
}

// ---- Requests --------------------------------------------------------------------------------------------------

// unclear says that a request ended without an answer.
func unclear(err error) bool {
	if err == nil {
		return false
	}
	code := status.Code(err)
	return errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsDeadlineExceeded(err) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		code == codes.Unavailable || code == codes.Canceled || code == codes.DeadlineExceeded
}

// once makes a request, which may be cancelled.
func (c *client) once(f func(ctx context.Context) error) error {
	timeout := answerTimeout
	if c.soak.chaos["cancel"] && c.rng.IntN(8) == 0 {
		timeout = time.Duration(c.rng.Int64N(int64(20 * time.Millisecond)))
	}
	ctx, cancel := context.WithTimeout(c.soak.ctx, timeout)
	defer cancel()
	return f(ctx)
}

// settle makes a request until it is answered. again: an earlier try may have done it.
func (c *client) settle(f func(ctx context.Context) error) (again bool, err error) {
	for begun, tries := time.Now(), 0; tries < 100 || time.Since(begun) < testfs.Patience; tries++ {
		err = c.once(f)
		if c.soak.ctx.Err() != nil {
			return again, context.Cause(c.soak.ctx)
		}
		if unclear(err) {
			again = true
			continue
		}
		if again && (errdefs.IsAborted(err) || errdefs.IsFailedPrecondition(err)) {
			time.Sleep(20 * time.Millisecond) // the earlier try may still be running
			continue
		}
		return again, err
	}
	return again, fmt.Errorf("no answer after many tries: %w", err)
}

// short says that the error is possible where there is no space left.
func (c *client) short(before space, err error) bool {
	return errdefs.IsResourceExhausted(err) && (before.full || c.soak.space() != before)
}

func (c *client) key(kind string) string {
	c.made++
	return fmt.Sprintf("%s-%s-%d", c.name, kind, c.made)
}

// pick returns one of the snapshots that f accepts, or "".
func (c *client) pick(f func(key string, s *snapshot) bool) string {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(c.have)) {
		if f(key, c.have[key]) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return ""
	}
	return keys[c.rng.IntN(len(keys))]
}

func isActive(_ string, s *snapshot) bool { return s.kind == snapshots.KindActive && !s.lost }

// parentKey returns a committed snapshot, the client's own or the base of all.
func (c *client) parentKey() (string, tree) {
	key := c.pick(func(_ string, s *snapshot) bool { return s.kind == snapshots.KindCommitted && !s.lost })
	if key == "" || c.rng.IntN(3) == 0 {
		return baseKey, c.soak.base
	}
	return key, c.have[key].files
}

// ---- Operations ------------------------------------------------------------------------------------------------

func (c *client) prepare() error {
	if len(c.have) >= maxSnapshots {
		return c.remove()
	}
	limit := 0
	if c.soak.chaos["limit"] && c.rng.IntN(3) == 0 {
		limit = clientLimit
	}
	_, err := c.prepareWith(limit)
	return err
}

// prepareWith prepares a snapshot. "": there is no space for one.
func (c *client) prepareWith(limit int) (string, error) {
	parent, files := c.parentKey()
	return c.prepareFrom(parent, files, limit)
}

func (c *client) prepareFrom(parent string, files tree, limit int) (string, error) {
	key := c.key("active")
	var opts []snapshots.Opt
	if limit > 0 {
		opts = append(opts, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: strconv.Itoa(limit)}))
	}
	before := c.soak.space()
	again, err := c.settle(func(ctx context.Context) error {
		_, err := c.s.Prepare(ctx, key, parent, opts...)
		return err
	})
	if again && errdefs.IsAlreadyExists(err) {
		err = nil
	}
	if c.short(before, err) {
		if again {
			c.unknown = append(c.unknown, key)
		} else {
			c.gone(key)
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	c.have[key] = &snapshot{kind: snapshots.KindActive, parent: parent, files: maps.Clone(files), limit: limit}
	return key, nil
}

func (c *client) mounts(key string) (mounts []mount.Mount, err error) {
	_, err = c.settle(func(ctx context.Context) error {
		mounts, err = c.s.Mounts(ctx, key)
		return err
	})
	return mounts, err
}

// in mounts a snapshot and calls f with the directory.
func (c *client) in(key string, f func(dir string) error) (err error) {
	mounts, err := c.mounts(key)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.soak.dir, "mounts", c.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := mount.All(mounts, dir); err != nil {
		return fmt.Errorf("mount %q: %w", key, err)
	}
	defer func() { err = errors.Join(err, mount.UnmountAll(dir, 0)) }()
	if err := f(dir); err != nil {
		return fmt.Errorf("%q: %w", key, err)
	}
	return nil
}

func (c *client) write() error {
	key := c.pick(isActive)
	if key == "" {
		return nil
	}
	s := c.have[key]
	return c.in(key, func(dir string) error {
		if err := s.files.check(dir); err != nil {
			return err
		}
		err := s.files.edit(c.rng, dir)
		if noSpace(err) {
			s.lost = true
			return nil
		}
		if err != nil {
			return err
		}
		return s.files.check(dir)
	})
}

// reachLimit writes more than the limit of a snapshot, and less again.
func (c *client) reachLimit() error {
	if !c.soak.chaos["limit"] || len(c.have) >= maxSnapshots {
		return nil
	}
	key, err := c.prepareWith(clientLimit)
	if err != nil || key == "" {
		return err
	}
	return c.in(key, func(dir string) error {
		big := filepath.Join(dir, "big")
		if err := os.WriteFile(big, file{seed: c.rng.Uint64(), size: 4 * clientLimit}.bytes(), 0o644); !noSpace(err) {
			return fmt.Errorf("writing 4 times the limit: %w", cmpErr(err))
		}
		return os.Remove(big)
	})
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

func (c *client) commit() error {
	key := c.pick(isActive)
	if key == "" {
		return nil
	}
	name := c.key("committed")
	before := c.soak.space()
	again, err := c.settle(func(ctx context.Context) error { return c.s.Commit(ctx, name, key) })
	if again && (errdefs.IsNotFound(err) || errdefs.IsAlreadyExists(err)) {
		err = nil
	}
	if c.short(before, err) {
		return c.in(key, c.have[key].files.check)
	}
	if err != nil {
		return err
	}
	s := c.have[key]
	s.kind = snapshots.KindCommitted
	c.have[name] = s
	c.gone(key)
	return c.mustBe(name)
}

// gone notes that a key must not be there.
func (c *client) gone(key string) {
	delete(c.have, key)
	c.removed = append(c.removed, key)
	if len(c.removed) > 50 {
		c.removed = c.removed[1:]
	}
}

// mustBe checks that a snapshot is there as it is known.
func (c *client) mustBe(key string) error {
	var info snapshots.Info
	_, err := c.settle(func(ctx context.Context) (err error) {
		info, err = c.s.Stat(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	if s := c.have[key]; info.Kind != s.kind || info.Parent != s.parent {
		return fmt.Errorf("%q is %v with parent %q, not %v with parent %q", key, info.Kind, info.Parent, s.kind, s.parent)
	}
	return nil
}

func (c *client) stat() error {
	if len(c.removed) > 0 && c.rng.IntN(2) == 0 {
		key := c.removed[c.rng.IntN(len(c.removed))]
		_, err := c.settle(func(ctx context.Context) error { _, err := c.s.Stat(ctx, key); return err })
		if !errdefs.IsNotFound(err) {
			return fmt.Errorf("%q was removed, and Stat says: %w", key, cmpErr(err))
		}
		return nil
	}
	key := c.pick(func(string, *snapshot) bool { return true })
	if key == "" {
		return nil
	}
	return c.mustBe(key)
}

// view looks at a committed snapshot, and takes the view away again, or leaves it for later.
func (c *client) view() error {
	parent, files := c.parentKey()
	key := c.key("view")
	before := c.soak.space()
	again, err := c.settle(func(ctx context.Context) error { _, err := c.s.View(ctx, key, parent); return err })
	if again && errdefs.IsAlreadyExists(err) {
		err = nil
	}
	if c.short(before, err) {
		c.unknown = append(c.unknown, key)
		return nil
	}
	if err != nil {
		return err
	}
	c.have[key] = &snapshot{kind: snapshots.KindView, parent: parent, files: files}
	if err := c.in(key, files.check); err != nil {
		return err
	}
	if c.rng.IntN(4) == 0 && len(c.have) < maxSnapshots {
		return nil
	}
	return c.removeKey(key)
}

func (c *client) remove() error {
	key := c.pick(func(key string, _ *snapshot) bool {
		return !slices.ContainsFunc(slices.Collect(maps.Values(c.have)), func(s *snapshot) bool { return s.parent == key })
	})
	if key == "" {
		return nil
	}
	return c.removeKey(key)
}

func (c *client) removeKey(key string) error {
	again, err := c.settle(func(ctx context.Context) error { return c.s.Remove(ctx, key) })
	if err != nil && !(again && errdefs.IsNotFound(err)) {
		return fmt.Errorf("remove: %w", err)
	}
	c.gone(key)
	return nil
}

func (c *client) cleanup() error {
	cleaner, ok := c.s.(snapshots.Cleaner)
	if !ok {
		return errors.New("the snapshotter cannot clean up")
	}
	_, err := c.settle(func(ctx context.Context) error { return cleaner.Cleanup(ctx) })
	return err
}

func (c *client) usage() error {
	key := c.pick(func(_ string, s *snapshot) bool { return s.kind != snapshots.KindView })
	if key == "" {
		return nil
	}
	_, err := c.settle(func(ctx context.Context) error { _, err := c.s.Usage(ctx, key); return err })
	return err
}

func (c *client) walk() error {
	found := make(map[string]bool)
	_, err := c.settle(func(ctx context.Context) error {
		clear(found)
		return c.s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			found[info.Name] = true
			return nil
		})
	})
	if err != nil {
		return err
	}
	for key := range c.have {
		if !found[key] {
			return fmt.Errorf("%q is not listed", key)
		}
	}
	for _, key := range c.removed {
		if found[key] {
			return fmt.Errorf("%q is listed though it was removed", key)
		}
	}
	return nil
}

// compare makes a layer of the changes of an active snapshot, applies it to another, and finds the same there.
func (c *client) compare() error {
	key := c.pick(isActive)
	if key == "" || len(c.have) >= maxSnapshots-1 {
		return nil
	}
	s := c.have[key]
	upper, err := c.mounts(key)
	if err != nil {
		return err
	}
	before := c.soak.space()
	lowerKey := c.key("lower")
	var lower []mount.Mount
	again, err := c.settle(func(ctx context.Context) (err error) {
		lower, err = c.s.View(ctx, lowerKey, s.parent)
		return err
	})
	if again && errdefs.IsAlreadyExists(err) {
		lower, err = c.mounts(lowerKey)
	}
	if c.short(before, err) {
		c.unknown = append(c.unknown, lowerKey)
		return nil
	}
	if err != nil {
		return err
	}
	c.have[lowerKey] = &snapshot{kind: snapshots.KindView, parent: s.parent}
	err = c.transfer(s, lower, upper, before)
	return errors.Join(err, c.removeKey(lowerKey))
}

func (c *client) transfer(s *snapshot, lower, upper []mount.Mount, before space) error {
	layer, err := c.layer(lower, upper)
	if c.short(before, err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	parent := c.soak.base
	if s.parent != baseKey {
		parent = c.have[s.parent].files
	}
	copied, err := c.prepareFrom(s.parent, parent, 0)
	if err != nil || copied == "" {
		return err
	}
	mounts, err := c.mounts(copied)
	if err != nil {
		return err
	}
	err = c.once(func(ctx context.Context) error { _, err := c.differ.Apply(ctx, layer, mounts); return err })
	if unclear(err) || c.short(before, err) {
		c.have[copied].lost = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	c.have[copied].files = maps.Clone(s.files)
	return c.in(copied, s.files.check)
}

func (c *client) layer(lower, upper []mount.Mount) (layer ocispec.Descriptor, err error) {
	_, err = c.settle(func(ctx context.Context) error {
		layer, err = c.differ.Compare(ctx, lower, upper, diff.WithMediaType("application/vnd.oci.image.layer.v1.tar"))
		return err
	})
	return layer, err
}

// ---- Rest ------------------------------------------------------------------------------------------------------

// checkAll checks everything that the client knows. Nothing else may be going on.
func (c *client) checkAll() error {
	if err := c.walk(); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	for key, s := range c.have {
		err := c.mustBe(key)
		switch {
		case err != nil || s.lost || s.files == nil:
		case s.kind == snapshots.KindCommitted:
			view := "look-at-" + key
			if _, err = c.s.View(c.soak.ctx, view, key); err == nil {
				err = errors.Join(c.in(view, s.files.check), c.s.Remove(c.soak.ctx, view))
			}
		default:
			err = c.in(key, s.files.check)
		}
		if err != nil {
			return fmt.Errorf("%s: %q: %w", c.name, key, err)
		}
	}
	return nil
}

// removeAll removes all that the client has, children first.
func (c *client) removeAll() error {
	for len(c.have) > 0 {
		if err := c.remove(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for _, key := range c.unknown {
		if err := c.s.Remove(c.soak.ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("%s: remove %q: %w", c.name, key, err)
		}
	}
	c.unknown = nil
	return nil
}
