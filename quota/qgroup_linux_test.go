package quota

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

const mib = units.MiB

// store is a filesystem under test with its enforcer.
type store struct {
	*Qgroups
	t   *testing.T
	dir string
}

func newStore(t *testing.T, policy Policy, opts ...testfs.BtrfsOption) *store {
	t.Helper()
	s := &store{t: t, dir: testfs.Btrfs(t, opts...)}
	if policy == PolicySimple {
		s.needSimple()
	}
	s.Qgroups = s.open(policy)
	return s
}

// open opens another enforcer of the same filesystem.
func (s *store) open(policy Policy) *Qgroups {
	s.t.Helper()
	q, err := OpenQgroups(s.dir, policy)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { assert.NoError(s.t, q.Close()) })
	return q
}

// openDir opens a directory below the filesystem's root. The caller closes it: a subvolume that has been
// destroyed is not dropped while a descriptor on it is open.
func (s *store) openDir(path string) int {
	s.t.Helper()
	fd, err := unix.Open(filepath.Join(s.dir, path), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(s.t, err)
	return fd
}

func (s *store) id(name string) uint64 {
	s.t.Helper()
	fd := s.openDir(name)
	defer unix.Close(fd)
	info, err := btrfsctl.Info(fd)
	require.NoError(s.t, err)
	return info.ID
}

func (s *store) create(name string) uint64 {
	s.t.Helper()
	require.NoError(s.t, btrfsctl.CreateSubvolume(s.fd(), name, nil))
	return s.id(name)
}

// clone makes a snapshot with a limit as a backend does.
func (s *store) clone(name, source string, limit Limit) uint64 {
	s.t.Helper()
	inherit, after, err := s.Inherit(s.t.Context(), limit, s.id(source))
	require.NoError(s.t, err)
	fd := s.openDir(source)
	defer unix.Close(fd)
	require.NoError(s.t, btrfsctl.Snapshot(s.fd(), name, fd, false, btrfsctl.NewLimit(inherit.MaxReferenced, inherit.MaxExclusive)))
	id := s.id(name)
	if after {
		require.NoError(s.t, s.SetLimit(s.t.Context(), id, limit))
	}
	return id
}

// write writes a file of that many MiB and returns the error of the write.
func (s *store) write(path string, mibs int) error {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, path), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	block := bytes.Repeat([]byte("0123456789abcdef"), mib/16)
	for range mibs {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// sync writes everything back and commits it, so that it shows in Usage.
func (s *store) sync() {
	s.t.Helper()
	require.NoError(s.t, unix.Syncfs(s.fd()))
}

// destroy destroys a subvolume and returns when it has been dropped.
func (s *store) destroy(name string) uint64 {
	s.t.Helper()
	id := s.id(name)
	require.NoError(s.t, btrfsctl.DestroySubvolume(s.fd(), name))
	require.NoError(s.t, btrfsctl.WakeCleaner(s.fd()))
	require.EventuallyWithT(s.t, func(c *assert.CollectT) {
		exists, err := btrfsctl.SubvolumeExists(s.fd(), id)
		assert.NoError(c, err)
		assert.False(c, exists)
	}, testfs.Patience, 5*time.Millisecond)
	return id
}

// needSimple skips the test where the kernel has no simple quotas. Call it with a btrfs mounted.
func (s *store) needSimple() {
	s.t.Helper()
	if _, err := os.Stat("/sys/fs/btrfs/features/simple_quota"); err != nil {
		testfs.Skip(s.t, "needs simple quotas (kernel 6.7): %v", err)
	}
}

func requireMode(t *testing.T, want Mode, q *Qgroups) {
	t.Helper()
	mode, err := q.Mode()
	require.NoError(t, err)
	require.Equal(t, want, mode)
}

var (
	layer50 = Limit{Bytes: 50 * mib, Scope: ScopeLayer}
	total50 = Limit{Bytes: 50 * mib, Scope: ScopeTotal}
)

// TestEnable checks which mode the first limit turns on, and that nothing before it does.
func TestEnable(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		scope  Scope
		want   Mode
	}{
		"auto layer":    {PolicyAuto, ScopeLayer, Simple},
		"auto total":    {PolicyAuto, ScopeTotal, Classic},
		"simple layer":  {PolicySimple, ScopeLayer, Simple},
		"classic layer": {PolicyClassic, ScopeLayer, Classic},
		"classic total": {PolicyClassic, ScopeTotal, Classic},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, c.policy)
			if c.want == Simple {
				s.needSimple()
			}
			id := s.create("a")
			requireMode(t, Off, s.Qgroups)
			limit, err := s.Limit(id)
			require.NoError(t, err)
			require.Zero(t, limit)
			_, err = s.Usage(id)
			require.ErrorIs(t, err, errdefs.ErrNotImplemented)
			require.NoError(t, s.SetLimit(t.Context(), id, Limit{}))
			inherit, after, err := s.Inherit(t.Context(), Limit{}, id)
			require.NoError(t, err)
			require.Zero(t, inherit)
			require.False(t, after)
			require.NoError(t, s.Rescan(t.Context()))
			require.NoError(t, s.Remove(id+1))
			requireMode(t, Off, s.Qgroups)

			mode, err := s.Enable(t.Context(), c.scope)
			require.NoError(t, err)
			assert.Equal(t, c.want, mode)
			requireMode(t, c.want, s.Qgroups)
			consistent, err := s.Consistent()
			require.NoError(t, err)
			assert.True(t, consistent)

			mode, err = s.Enable(t.Context(), c.scope)
			require.NoError(t, err)
			assert.Equal(t, c.want, mode)
		})
	}
}

// TestEnableConflicts checks that a limit that the policy and the mode do not allow is refused with advice
// and changes nothing.
func TestEnableConflicts(t *testing.T) {
	for name, c := range map[string]struct {
		opts   []testfs.BtrfsOption
		policy Policy
		scope  Scope
		want   string
		mode   Mode
	}{
		"off":                {nil, PolicyOff, ScopeLayer, "set btrfs.quota to auto, simple or classic", Off},
		"simple total":       {nil, PolicySimple, ScopeTotal, "set btrfs.quota=classic, or btrfs.quota_scope=layer", Off},
		"simple on classic":  {[]testfs.BtrfsOption{testfs.WithClassicQuota()}, PolicySimple, ScopeLayer, "on in classic mode and btrfs.quota=simple asks for another: set btrfs.quota=classic or auto, or turn them off with \"btrfs quota disable /", Classic},
		"classic on simple":  {[]testfs.BtrfsOption{testfs.WithSimpleQuota()}, PolicyClassic, ScopeLayer, "on in simple mode and btrfs.quota=classic asks for another", Simple},
		"auto total, simple": {[]testfs.BtrfsOption{testfs.WithSimpleQuota()}, PolicyAuto, ScopeTotal, "set btrfs.quota_scope=layer", Simple},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, c.policy, c.opts...)
			id := s.create("a")
			limit := Limit{Bytes: 50 * mib, Scope: c.scope}

			_, err := s.Enable(t.Context(), c.scope)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, c.want)
			require.ErrorIs(t, s.SetLimit(t.Context(), id, limit), errdefs.ErrFailedPrecondition)
			_, _, err = s.Inherit(t.Context(), limit, id)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)

			requireMode(t, c.mode, s.Qgroups)
			require.NoError(t, s.SetLimit(t.Context(), id, Limit{}))
		})
	}
}

// TestEnableOnce lets several first limits race.
func TestEnableOnce(t *testing.T) {
	s := newStore(t, PolicyAuto)
	s.needSimple()
	other := s.open(PolicyAuto)
	id := s.create("a")
	var wg sync.WaitGroup
	for i := range 16 {
		q := s.Qgroups
		if i%2 == 0 {
			q = other
		}
		wg.Go(func() { assert.NoError(t, q.SetLimit(t.Context(), id, layer50)) })
	}
	wg.Wait()
	requireMode(t, Simple, s.Qgroups)
	limit, err := s.Limit(id)
	require.NoError(t, err)
	assert.Equal(t, layer50, limit)
}

// TestLimit writes over the limit of a clone of a 30 MiB image: the layer's own 50 MiB, or 50 in total.
func TestLimit(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		limit  Limit
		fits   int // MiB
	}{
		"simple":        {PolicySimple, layer50, 45},
		"classic":       {PolicyClassic, layer50, 45},
		"classic total": {PolicyClassic, total50, 15},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, c.policy)
			s.create("image")
			require.NoError(t, s.write("image/file", 30))
			s.sync()
			id := s.clone("layer", "image", c.limit)
			limit, err := s.Limit(id)
			require.NoError(t, err)
			require.Equal(t, c.limit, limit)

			require.NoError(t, s.write("layer/a", c.fits))
			require.ErrorIs(t, s.write("layer/b", 10), unix.EDQUOT)

			// Over the limit, deleting works, and makes room at once.
			require.NoError(t, os.Remove(filepath.Join(s.dir, "layer/b")))
			require.NoError(t, os.Remove(filepath.Join(s.dir, "layer/a")))
			require.NoError(t, s.write("layer/a", c.fits))
			s.sync()

			usage, err := s.Usage(id)
			require.NoError(t, err)
			assert.InDelta(t, c.fits*mib, usage.Bytes, mib)
			if c.policy == PolicyClassic {
				assert.InDelta(t, (c.fits+30)*mib, usage.Total, mib)
			} else {
				assert.Zero(t, usage.Total)
			}

			// Below the present size: only deleting works.
			tight := Limit{Bytes: 10 * mib, Scope: c.limit.Scope}
			require.NoError(t, s.SetLimit(t.Context(), id, tight))
			require.ErrorIs(t, s.write("layer/c", 1), unix.EDQUOT)
			require.NoError(t, os.Remove(filepath.Join(s.dir, "layer/a")))

			require.NoError(t, s.SetLimit(t.Context(), id, Limit{}))
			limit, err = s.Limit(id)
			require.NoError(t, err)
			require.Zero(t, limit)
			require.NoError(t, s.write("layer/a", 100))
		})
	}
}

// TestScopeReplaced checks that of the two limits that a classic qgroup can have, a new one replaces both.
func TestScopeReplaced(t *testing.T) {
	s := newStore(t, PolicyClassic)
	id := s.create("a")
	for _, want := range []Limit{layer50, total50, layer50, {}} {
		require.NoError(t, s.SetLimit(t.Context(), id, want))
		limit, err := s.Limit(id)
		require.NoError(t, err)
		assert.Equal(t, want, limit)
	}
}

// TestInherit checks that a new subvolume has exactly the limit that it was made with: not its source's.
func TestInherit(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		scope  Scope
		after  bool // whether the limit of a snapshot takes a second step
	}{
		"simple":        {PolicySimple, ScopeLayer, false},
		"classic":       {PolicyClassic, ScopeLayer, true},
		"classic total": {PolicyClassic, ScopeTotal, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, c.policy)
			limit := Limit{Bytes: 50 * mib, Scope: c.scope}

			inherit, after, err := s.Inherit(t.Context(), limit, 0)
			require.NoError(t, err)
			require.False(t, after)
			require.NoError(t, btrfsctl.CreateSubvolume(s.fd(), "limited", btrfsctl.NewLimit(inherit.MaxReferenced, inherit.MaxExclusive)))
			inherit, after, err = s.Inherit(t.Context(), Limit{}, 0)
			require.NoError(t, err)
			require.False(t, after)
			require.NoError(t, btrfsctl.CreateSubvolume(s.fd(), "free", btrfsctl.NewLimit(inherit.MaxReferenced, inherit.MaxExclusive)))
			got, err := s.Limit(s.id("limited"))
			require.NoError(t, err)
			require.Equal(t, limit, got)

			_, after, err = s.Inherit(t.Context(), limit, s.id("free"))
			require.NoError(t, err)
			assert.Equal(t, c.after, after)
			_, after, err = s.Inherit(t.Context(), Limit{}, s.id("limited"))
			require.NoError(t, err)
			assert.Equal(t, c.after, after)
			_, after, err = s.Inherit(t.Context(), Limit{}, s.id("free"))
			require.NoError(t, err)
			assert.False(t, after)

			other := Limit{Bytes: 20 * mib, Scope: c.scope}
			for name, want := range map[string]Limit{"limited": other, "free": {}} {
				for _, source := range []string{"limited", "free"} {
					got, err := s.Limit(s.clone(name+" from "+source, source, want))
					require.NoError(t, err)
					assert.Equal(t, want, got, "%s from %s", name, source)
				}
			}
		})
	}
}

func TestNoSuchSubvolume(t *testing.T) {
	for name, policy := range map[string]Policy{"simple": PolicySimple, "classic": PolicyClassic} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, policy)
			_, err := s.Enable(t.Context(), ScopeLayer)
			require.NoError(t, err)
			const absent = 99999
			require.ErrorIs(t, s.SetLimit(t.Context(), absent, layer50), errdefs.ErrNotFound)
			_, err = s.Limit(absent)
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			_, err = s.Usage(absent)
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			require.NoError(t, s.Remove(absent))
		})
	}
}

// TestUsageWithSnapshot checks the usage of a snapshotted subvolume in the two modes.
func TestUsageWithSnapshot(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		want   int // MiB
	}{
		"simple":  {PolicySimple, 20},
		"classic": {PolicyClassic, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, c.policy)
			_, err := s.Enable(t.Context(), ScopeLayer)
			require.NoError(t, err)
			id := s.create("a")
			require.NoError(t, s.write("a/file", 20))
			s.sync()
			usage, err := s.Usage(id)
			require.NoError(t, err)
			require.InDelta(t, 20*mib, usage.Bytes, mib)

			s.clone("b", "a", Limit{})
			s.sync()
			usage, err = s.Usage(id)
			require.NoError(t, err)
			assert.InDelta(t, c.want*mib, usage.Bytes, mib)
		})
	}
}

// TestOlderData checks that simple quotas do not charge data from before them.
func TestOlderData(t *testing.T) {
	s := newStore(t, PolicySimple)
	id := s.create("a")
	require.NoError(t, s.write("a/old", 20))
	s.sync()
	require.NoError(t, s.SetLimit(t.Context(), id, layer50))
	require.NoError(t, s.write("a/new", 10))
	s.sync()
	usage, err := s.Usage(id)
	require.NoError(t, err)
	assert.InDelta(t, 10*mib, usage.Bytes, mib)

	require.NoError(t, os.Remove(filepath.Join(s.dir, "a/old")))
	s.sync()
	usage, err = s.Usage(id)
	require.NoError(t, err)
	assert.InDelta(t, 10*mib, usage.Bytes, mib)
}

// TestRemove follows qgroups from the destruction of their subvolumes to their end.
func TestRemove(t *testing.T) {
	stale := func(s *store) (ids []uint64) {
		for id, err := range s.Stale() {
			require.NoError(s.t, err)
			ids = append(ids, id)
		}
		return ids
	}
	for name, policy := range map[string]Policy{"simple": PolicySimple, "classic": PolicyClassic} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, policy)
			_, err := s.Enable(t.Context(), ScopeLayer)
			require.NoError(t, err)
			alive := s.create("alive")
			require.NoError(t, s.write("alive/file", 10))
			s.sync()
			require.ErrorIs(t, s.Remove(alive), ErrNotYet)
			heir := s.clone("heir", "alive", Limit{})
			require.Empty(t, stale(s))

			// Its extents live on in the heir, and simple quotas go on charging it for them.
			gone := s.destroy("alive")
			if policy == PolicySimple {
				require.ErrorIs(t, s.Remove(gone), ErrNotYet)
				require.Equal(t, []uint64{gone}, stale(s))
			}
			require.Equal(t, heir, s.destroy("heir"))
			for _, id := range []uint64{gone, heir} {
				require.EventuallyWithT(t, func(c *assert.CollectT) {
					assert.NoError(c, s.Remove(id))
				}, testfs.Patience, 5*time.Millisecond)
			}
			require.Empty(t, stale(s))
			require.NoError(t, s.Remove(gone))
		})
	}
}

// TestStaleStops checks that the list can be left early and goes on over an error only by ending.
func TestStaleStops(t *testing.T) {
	s := newStore(t, PolicySimple)
	_, err := s.Enable(t.Context(), ScopeLayer)
	require.NoError(t, err)
	for range s.Stale() {
		t.Fatal("a fresh filesystem has no stale qgroups")
	}
	closed, err := OpenQgroups(s.dir, PolicyAuto)
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	var errs []error
	for _, err := range closed.Stale() {
		errs = append(errs, err)
	}
	require.Len(t, errs, 1)
	require.ErrorIs(t, errs[0], unix.EBADF)
}

// TestRescan makes classic quotas lose count and checks that the next limit repairs them.
func TestRescan(t *testing.T) {
	s := newStore(t, PolicyClassic)
	id := s.create("a")
	require.NoError(t, s.SetLimit(t.Context(), id, layer50))

	s.loseCount()
	require.NoError(t, s.write("a/file", 80), "limits are not enforced in this state")
	s.sync()

	require.NoError(t, s.SetLimit(t.Context(), id, layer50))
	consistent, err := s.Consistent()
	require.NoError(t, err)
	require.True(t, consistent)
	require.ErrorIs(t, s.write("a/more", 1), unix.EDQUOT)
	usage, err := s.Usage(id)
	require.NoError(t, err)
	assert.InDelta(t, 80*mib, usage.Bytes, mib)
}

// loseCount makes the kernel give up counting, as it does when a large subvolume is destroyed.
func (s *store) loseCount() {
	s.t.Helper()
	threshold := filepath.Join(s.sysfs, "drop_subtree_threshold")
	if err := os.WriteFile(threshold, []byte("0"), 0o600); err != nil {
		testfs.Skip(s.t, "needs kernel 6.1: %v", err)
	}
	s.create("large")
	for i := range 2000 { // more than one leaf of a tree
		require.NoError(s.t, os.WriteFile(filepath.Join(s.dir, "large", strconv.Itoa(i)), []byte("x"), 0o600))
	}
	s.sync()
	s.clone("copy", "large", Limit{})
	s.destroy("copy")
	s.sync()
	consistent, err := s.Consistent()
	require.NoError(s.t, err)
	require.False(s.t, consistent)
}

// TestRescanCancelled checks that waiting ends with the context, and says so.
func TestRescanCancelled(t *testing.T) {
	s := newStore(t, PolicyClassic)
	for i := range 20 {
		s.create(strconv.Itoa(i))
		for j := range 500 {
			require.NoError(t, os.WriteFile(filepath.Join(s.dir, strconv.Itoa(i), strconv.Itoa(j)), make([]byte, 8<<10), 0o600))
		}
	}
	s.sync()
	reason := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	// The rescan may be over before anyone has looked.
	if _, err := s.Enable(ctx, ScopeLayer); err != nil {
		require.ErrorIs(t, err, reason)
	}
	mode, err := s.Enable(t.Context(), ScopeLayer)
	require.NoError(t, err)
	assert.Equal(t, Classic, mode)
	running, _, err := btrfsctl.RescanRunning(s.fd())
	require.NoError(t, err)
	assert.False(t, running)
}

// TestSysfs compares the values from sysfs with those from the quota tree.
func TestSysfs(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		limits []Limit
	}{
		"simple":  {PolicySimple, []Limit{{}, layer50}},
		"classic": {PolicyClassic, []Limit{{}, layer50, total50}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, c.policy)
			if _, err := os.Stat(filepath.Dir(s.sysfs)); err != nil {
				testfs.Skip(t, "needs sysfs: %v", err)
			}
			status, err := s.sysfsStatus()
			require.NoError(t, err)
			require.Zero(t, status)

			_, err = s.Enable(t.Context(), ScopeLayer)
			require.NoError(t, err)
			id := s.create("a")
			require.NoError(t, s.write("a/file", 5))
			for _, limit := range c.limits {
				require.NoError(t, s.SetLimit(t.Context(), id, limit))
				s.sync()

				treeStatus, err := btrfsctl.ReadQuotaStatus(s.fd())
				require.NoError(t, err)
				status, err := s.sysfsStatus()
				require.NoError(t, err)
				assert.Equal(t, treeStatus, status)

				treeReferenced, treeExclusive, err := btrfsctl.QgroupUsage(s.fd(), id)
				require.NoError(t, err)
				referenced, err := s.sysfsNumber(qgroupName(id), "referenced")
				require.NoError(t, err)
				exclusive, err := s.sysfsNumber(qgroupName(id), "exclusive")
				require.NoError(t, err)
				assert.Equal(t, []uint64{treeReferenced, treeExclusive}, []uint64{referenced, exclusive})

				treeLimits, err := btrfsctl.QgroupLimits(s.fd(), id)
				require.NoError(t, err)
				limits, err := s.sysfsLimits(id)
				require.NoError(t, err)
				assert.Equal(t, treeLimits, limits)
			}

			// Values missing in sysfs are read from the tree.
			want, err := s.Usage(id)
			require.NoError(t, err)
			s.sysfs = filepath.Join(t.TempDir(), "absent", "qgroups")
			got, err := s.Usage(id)
			require.NoError(t, err)
			assert.Equal(t, want, got)
			limit, err := s.Limit(id)
			require.NoError(t, err)
			assert.Equal(t, c.limits[len(c.limits)-1], limit)
			consistent, err := s.Consistent()
			require.NoError(t, err)
			assert.True(t, consistent)
		})
	}
	gone := &Qgroups{sysfs: filepath.Join(t.TempDir(), "absent", "qgroups")}
	_, err := gone.sysfsStatus()
	require.ErrorIs(t, err, os.ErrNotExist, "no sysfs is not the same as no quotas")
}

// TestUnprivileged does the possible operations in a nested user namespace, where root is not the kernel's.
func TestUnprivileged(t *testing.T) {
	const dirEnv, idEnv = "COWSHED_TEST_QUOTA_DIR", "COWSHED_TEST_QUOTA_ID"
	if dir := os.Getenv(dirEnv); dir != "" {
		id, err := strconv.ParseUint(os.Getenv(idEnv), 10, 64)
		require.NoError(t, err)
		q, err := OpenQgroups(dir, PolicyAuto)
		require.NoError(t, err)
		defer q.Close()
		requireMode(t, Simple, q)
		usage, err := q.Usage(id)
		require.NoError(t, err)
		assert.InDelta(t, 5*mib, usage.Bytes, mib)
		limit, err := q.Limit(id)
		require.NoError(t, err)
		assert.Equal(t, layer50, limit)
		require.ErrorIs(t, q.SetLimit(t.Context(), id, total50), errdefs.ErrFailedPrecondition)
		require.ErrorIs(t, q.SetLimit(t.Context(), id, layer50), errdefs.ErrPermissionDenied)
		require.ErrorIs(t, q.Remove(id), errdefs.ErrPermissionDenied)
		return
	}
	s := newStore(t, PolicyAuto)
	s.needSimple()
	id := s.create("a")
	require.NoError(t, s.SetLimit(t.Context(), id, layer50))
	require.NoError(t, s.write("a/file", 5))
	s.sync()

	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestUnprivileged$", "-test.v")
	cmd.Env = append(os.Environ(), dirEnv+"="+s.dir, idEnv+"="+strconv.FormatUint(id, 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		testfs.Skip(t, "needs nested user namespaces: %v", err)
	}
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestUnprivileged")
}

func TestOpenErrors(t *testing.T) {
	_, err := OpenQgroups(filepath.Join(t.TempDir(), "absent"), PolicyAuto)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = OpenQgroups("/proc", PolicyAuto)
	require.ErrorIs(t, err, unix.ENOTTY)
}

// BenchmarkUsage is the cost of asking; it must not depend on the size of the subvolume.
func BenchmarkUsage(b *testing.B) {
	dir := testfs.Btrfs(b, testfs.WithSimpleQuota())
	q, err := OpenQgroups(dir, PolicyAuto)
	require.NoError(b, err)
	defer q.Close()
	require.NoError(b, btrfsctl.CreateSubvolume(q.fd(), "a", nil))
	id, err := btrfsctl.NextQgroup(q.fd(), btrfsctl.FirstFreeObjectID)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := q.Usage(id); err != nil {
			b.Fatal(err)
		}
	}
}

// TestRemember: the note of limits is made as soon as there is room for it. A limit that a subvolume is made with counts too.
func TestRemember(t *testing.T) {
	limit := Limit{Bytes: 10 * mib}
	s := newStore(t, PolicyAuto)
	require.NoError(t, os.Mkdir(s.limited(), 0o700)) // as on a filesystem without room for the file
	id := s.create("layer")
	require.NoError(t, s.SetLimit(t.Context(), id, limit))
	require.NoError(t, os.Remove(s.limited()))
	s.clone("clone", "layer", limit)
	assert.FileExists(t, s.limited())

	require.NoError(t, os.Remove(s.limited()))
	other := s.open(PolicyAuto) // quotas are on already
	_, _, err := other.Inherit(t.Context(), limit, 0)
	require.NoError(t, err)
	assert.FileExists(t, s.limited())
	require.NoError(t, btrfsctl.DisableQuota(s.fd()))
	lost, err := other.Lost()
	require.NoError(t, err)
	assert.True(t, lost)
}
