package live_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// meanwhile is a Backend without Exchanger that calls before just before the layer web is renamed.
type meanwhile struct {
	*failing
	before func()
}

func (m meanwhile) Rename(ctx context.Context, name, to string) error {
	if name == "web" {
		m.before()
	}
	return m.failing.Rename(ctx, name, to)
}

// eachMeanwhile are Backends that call before just before the layer web loses its name.
func eachMeanwhile(home func(t *testing.T) home, before func(b cowcommon.Backend)) map[string]crashing {
	return map[string]crashing{
		"native": {home, func(f *failing) cowcommon.Backend {
			return around{failingNative{f}, func() { before(f.Backend) }, func() {}}
		}},
		"by clones": {home, func(f *failing) cowcommon.Backend {
			return meanwhile{f, func() { before(f.Backend) }}
		}},
	}
}

// TestSealedMeanwhile: a layer is sealed, as by a commit of a container, while a rollback of it is under way. It keeps its
// content, wherever the rollback is interrupted.
func TestSealedMeanwhile(t *testing.T) {
	seal := func(b cowcommon.Backend) { assert.NoError(t, cowcommon.Seal(t.Context(), b, "web")) }
	kinds := eachMeanwhile(func(t *testing.T) home { return newHome(t) }, seal)
	eachCrash(t, kinds,
		func(h home) {
			h.create("web")
			h.put("web", "file", "1")
			_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
			require.NoError(t, err)
			h.put("web", "file", "2")
		},
		func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			if errors.Is(err, errCrash) {
				return err
			}
			require.ErrorIs(h.t, err, fault.ErrSealed)
			return nil
		},
		func(h home, done bool) {
			h.assertClean(1, "web")
			assert.Equal(h.t, "2", h.get("web", "file"))
			assert.Equal(h.t, []string{"one"}, h.names("web"))
			v, err := h.backend.Stat(t.Context(), "web")
			require.NoError(h.t, err)
			assert.True(h.t, v.Sealed || !done)
		})
}

// TestLimitMeanwhile: a limit is set while a rollback is under way. The layer has it afterwards, wherever the rollback is
// interrupted. A limit that is set after the exchange stays.
func TestLimitMeanwhile(t *testing.T) {
	quotas := func(t *testing.T) home { return newHome(t, testfs.WithSimpleQuota()) }
	set := func(b cowcommon.Backend, mib uint64) {
		assert.NoError(t, cowcommon.SetLimit(t.Context(), b, "web", quota.Limit{Bytes: mib << 20}))
	}
	isSet := false
	begin := func(h home) {
		isSet = false
		require.NoError(t, h.backend.Create(t.Context(), "web", cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 64 << 20}}))
		_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
	}
	kinds := eachMeanwhile(quotas, func(b cowcommon.Backend) { set(b, 32); isSet = true })
	eachCrash(t, kinds, begin,
		func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			return err
		},
		func(h home, done bool) {
			require.NoError(t, h.Sweep(t.Context()))
			v, err := h.backend.Stat(t.Context(), "web")
			require.NoError(t, err)
			assert.EqualValues(t, map[bool]int{true: 32 << 20, false: 64 << 20}[isSet], v.Limit.Bytes)
		})

	h := quotas(t)
	begin(h)
	all := failingNative{&failing{Backend: h.backend, left: -1}}
	_, err := h.over(around{all, func() { set(h.backend, 32) }, func() { set(h.backend, 16) }}).Rollback(t.Context(), "web", "one", live.RollbackOptions{})
	require.NoError(t, err)
	v, err := h.backend.Stat(t.Context(), "web")
	require.NoError(t, err)
	assert.EqualValues(t, 16<<20, v.Limit.Bytes)
}

// TestReplacedMeanwhile: a rollback is interrupted, and another command of the layer gives it another content before anybody ends the
// rollback. The volume that the rollback has made is no former content of the layer, unless the layer had got it.
func TestReplacedMeanwhile(t *testing.T) {
	eachCrash(t, onBtrfs(), rolledBack,
		func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			return err
		},
		func(h home, _ bool) {
			if _, err := h.backend.Stat(t.Context(), "web"); errdefs.IsNotFound(err) { // between two renames
				require.NoError(t, h.Sweep(t.Context()))
				return
			}
			former := []string{h.get("web", "file")}
			if former[0] != "now" {
				former = append(former, "now")
			}
			end := h.othersAtWork()
			_, err := h.Rollback(t.Context(), "web", "two", live.RollbackOptions{})
			end()
			require.NoError(t, err)
			require.NoError(t, h.Sweep(t.Context()))
			assert.Equal(t, "2", h.get("web", "file"))
			var before []string
			for _, name := range h.names("web") {
				if strings.HasPrefix(name, "before-rollback-") {
					before = append(before, h.snapshotFile("web", name))
				}
			}
			slices.Sort(before)
			assert.Equal(t, former, before)
		})
}

// TestFailedExchangeMeanwhile: another layer has got the name of a layer when a rollback of that fails.
func TestFailedExchangeMeanwhile(t *testing.T) {
	h := newHome(t)
	rolledBack(h)
	native := failingNative{&failing{Backend: h.backend, left: -1}}
	_, err := h.over(exchangeInUse{native, func() {
		assert.NoError(t, h.backend.Remove(t.Context(), "web"))
		h.create("web")
	}}).Rollback(t.Context(), "web", "one", live.RollbackOptions{})
	require.ErrorIs(t, err, fault.ErrInUse)
	assert.Equal(t, []string{"one", "two"}, h.names("web"))
	h.assertClean(2, "web")
}

// exchangeInUse is a Backend that exchanges nothing, since somebody uses a volume by then.
type exchangeInUse struct {
	failingNative
	before func()
}

func (u exchangeInUse) Exchange(context.Context, string, string) error {
	u.before()
	return fault.ErrInUse
}

// rolledBack makes a layer that has the file "now", and snapshots of former contents.
func rolledBack(h home) {
	h.create("web")
	for file, snapshot := range map[string]string{"1": "one", "2": "two"} { // in any order
		h.put("web", "file", file)
		_, err := h.Snapshot(h.t.Context(), "web", snapshot, live.SnapshotOptions{})
		require.NoError(h.t, err)
	}
	h.put("web", "file", "now")
}

// othersAtWork keeps the next commands from ending interrupted steps, until end is called.
func (h home) othersAtWork() (end func()) {
	h.t.Helper()
	lock, err := os.Open(filepath.Join(h.records, ".lock"))
	require.NoError(h.t, err)
	require.NoError(h.t, flock.Shared(h.t.Context(), lock))
	return func() { require.NoError(h.t, lock.Close()) }
}

// snapshotFile reads the file of a snapshot.
func (h home) snapshotFile(layer, snapshot string) string {
	h.t.Helper()
	m, err := h.Get(layer, snapshot)
	require.NoError(h.t, err)
	return h.get(m.Volume, "file")
}

// TestBesideLive: while changes are made in place, another command is to give the layer another content. It waits, so no content is a
// mixture.
func TestBesideLive(t *testing.T) {
	changes := map[string]func(h home) error{
		"rollback in place": func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "two", live.RollbackOptions{Live: true})
			return err
		},
		"merge in place": func(h home) error {
			_, err := h.Merge(t.Context(), "fork", live.MergeOptions{Live: true})
			return err
		},
	}
	for name, change := range changes {
		for _, inPlace := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, other in place %t", name, inPlace), func(t *testing.T) {
				h := newHome(t)
				rolledBack(h)
				_, err := h.Fork(t.Context(), "web", []string{"fork"}, live.ForkOptions{})
				require.NoError(t, err)
				h.put("fork", "of the fork", "")
				ended := make(chan error, 1)
				begin := sync.OnceFunc(func() {
					go func() {
						_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{Live: inPlace})
						ended <- err
					}()
					h.waiting(ended)
				})
				require.NoError(t, change(h.over(mounting{failingNative{&failing{Backend: h.backend, left: -1}}, begin})))
				require.NoError(t, testfs.Result(ended))
				h.edit("web", func(dir string) {
					entries, err := os.ReadDir(dir)
					require.NoError(t, err)
					assert.Len(t, entries, 1)
				})
				assert.Equal(t, "1", h.get("web", "file"))
			})
		}
	}
}

// waiting waits until two commands have the file open by which they keep each other away, or until the other has ended.
func (h home) waiting(ended chan error) {
	h.t.Helper()
	assert.Eventually(h.t, func() bool {
		return len(ended) > 0 || h.opened(".content") == 2
	}, testfs.Patience, time.Millisecond)
}

// opened counts how often this process has a file of the records open.
func (h home) opened(name string) (n int) {
	fds, err := os.ReadDir("/proc/self/fd")
	assert.NoError(h.t, err)
	for _, fd := range fds {
		if file, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && file == filepath.Join(h.records, name) {
			n++
		}
	}
	return n
}

// TestReplacedInPlace: another layer has got the name of a layer that is about to be changed in place. It is left alone.
func TestReplacedInPlace(t *testing.T) {
	h := newHome(t)
	rolledBack(h)
	again := sync.OnceFunc(func() {
		assert.NoError(t, h.backend.Remove(t.Context(), "web"))
		h.create("web")
	})
	_, err := h.over(mounting{failingNative{&failing{Backend: h.backend, left: -1}}, again}).Rollback(t.Context(), "web", "two", live.RollbackOptions{Live: true})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	assert.Empty(t, h.get("web", "file"))
}
