package zfs

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// TestIndexWhoseListFails: a look fails if the list fails in the middle. Neither a part of the list nor an earlier list
// counts. The next look reads the list again.
func TestIndexWhoseListFails(t *testing.T) {
	k := oneDataset()
	c, dir := newFake(t, k)
	x := fakeIndex(t, c, dir)
	assertKnown := func() {
		t.Helper()
		d, ok, err := x.get(t.Context(), "a")
		require.NoError(t, err)
		assert.True(t, ok && d.own)
	}
	assertKnown()
	x.invalidate()
	failure := error(&zfsctl.Error{Op: "list", Name: "pool", Err: unix.EIO})
	k.err.Store(&failure)
	for range 2 {
		_, _, err := x.get(t.Context(), "a")
		require.ErrorIs(t, err, unix.EIO)
		_, err = x.all(t.Context())
		require.ErrorIs(t, err, unix.EIO)
	}
	k.err.Store(nil)
	assertKnown()

	// Another process has changed something.
	fakeIndex(t, c, dir).doubt()
	k.err.Store(&failure)
	for range 2 {
		_, _, err := x.get(t.Context(), "a")
		require.ErrorIs(t, err, unix.EIO)
	}
	k.err.Store(nil)
	assertKnown()

	// The kernel ends the list of a dataset that is renamed meanwhile, without an error.
	x.invalidate()
	k.gone = true
	_, err := x.all(t.Context())
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	k.gone = false
	assertKnown()
}

// TestDescribe: the index describes datasets as the kernel does, and survives a lack of properties.
func TestDescribe(t *testing.T) {
	own := volumeNamed("a")
	limited := volumeNamed("a")
	limited.Origin = "pool/base@layer"
	limited.Properties["refquota"] = nvlist.List{"value": uint64(5)}
	moby := strings.Repeat("0123456789abcdef", 4)
	for name, test := range map[string]struct {
		name string
		from zfsctl.Dataset
		want dataset
	}{
		"own":                {"a", own, dataset{created: time.Unix(1, 0), marked: true, own: true}},
		"limited clone":      {"a", limited, dataset{origin: "pool/base@layer", limit: quota.Limit{Bytes: 5, Scope: quota.ScopeTotal}, created: time.Unix(1, 0), marked: true, own: true}},
		"name of no volume":  {"..", own, dataset{created: time.Unix(1, 0), marked: true}},
		"no properties":      {"a", zfsctl.Dataset{}, dataset{created: time.Unix(0, 0)}},
		"of another":         {"a", zfsctl.Dataset{Properties: zfsctl.Properties{"mountpoint": nvlist.List{"value": "legacy"}}}, dataset{created: time.Unix(0, 0)}},
		"of moby":            {moby, zfsctl.Dataset{Properties: zfsctl.Properties{"mountpoint": nvlist.List{"value": "legacy"}}}, dataset{created: time.Unix(0, 0), own: true}},
		"moby's, but mounts": {moby, zfsctl.Dataset{Properties: zfsctl.Properties{"mountpoint": nvlist.List{"value": "/x"}}}, dataset{created: time.Unix(0, 0)}},
		"odd properties":     {"a", zfsctl.Dataset{Properties: zfsctl.Properties{"creation": "x", "quota": nvlist.List{"value": "x"}, markProperty: nvlist.List{"value": uint64(1)}}}, dataset{created: time.Unix(0, 0)}},
	} {
		assert.Equal(t, test.want, describe(test.name, test.from), name)
	}
}

// TestSnapshotsOf: snapshots are listed only if there is a later one than the seal.
func TestSnapshotsOf(t *testing.T) {
	for latest, test := range map[string]struct {
		snapshots    []string
		listed, want bool
	}{
		"":                      {},
		"pool/base@layer":       {},
		"pool/a2@layer":         {},
		"pool/a@layer":          {want: true},
		"pool/a@cowshed-view-1": {[]string{"cowshed-view-1"}, true, false},
		"pool/a@cowshed-view-2": {[]string{"layer", "cowshed-view-2"}, true, true},
	} {
		d := zfsctl.Dataset{Name: "pool/a", Properties: zfsctl.Properties{}}
		if latest != "" {
			d.Properties["prevsnap"] = nvlist.List{"value": latest}
		}
		k := &snapshotKernel{snapshots: test.snapshots}
		sealed, snapshotted, err := snapshotsOf(k, d)
		require.NoError(t, err)
		assert.Equal(t, test.want, sealed, latest)
		assert.Equal(t, test.want || test.listed, snapshotted, latest)
		assert.Equal(t, test.listed, k.listed, latest)
	}
}

// snapshotKernel lists the snapshots of one dataset.
type snapshotKernel struct {
	kernel
	snapshots []string
	listed    bool
}

func (k *snapshotKernel) Snapshots(name string) iter.Seq2[zfsctl.Dataset, error] {
	k.listed = true
	return func(yield func(zfsctl.Dataset, error) bool) {
		for _, s := range k.snapshots {
			if !yield(zfsctl.Dataset{Name: name + "@" + s, IsSnapshot: true}, nil) {
				return
			}
		}
	}
}

// TestIndexCancelled: a look that is cancelled ends its own list, and no other look.
func TestIndexCancelled(t *testing.T) {
	k := oneDataset()
	c, dir := newFake(t, k)
	c.patience = testfs.Patience
	x := fakeIndex(t, c, dir)
	started, end := make(chan struct{}), make(chan struct{})
	stop := func() {
		k.stops.Store(nil)
		close(started)
		<-end
	}
	k.stops.Store(&stop)
	cancel := make(chan struct{})
	ctx := cancelledAt(t, cancel)
	given := make(chan error)
	go func() {
		_, _, err := x.get(ctx, "a")
		given <- err
	}()
	testfs.Receive(t, started)
	others := make(chan error)
	for range 3 {
		go func() {
			_, ok, err := x.get(context.WithoutCancel(ctx), "a")
			if err == nil && !ok {
				err = errdefs.ErrNotFound
			}
			others <- err
		}()
	}
	close(cancel)
	require.ErrorIs(t, testfs.Receive(t, given), context.Canceled)
	for range 3 {
		require.NoError(t, testfs.Receive(t, others))
	}
	close(end)
	_, ok, err := x.get(t.Context(), "b")
	require.NoError(t, err)
	assert.False(t, ok)
}

// TestListingKeepsNobodyWaiting: while volumes are listed from the kernel, other looks answer from memory. The list has the
// changes that are made meanwhile. After a list that fails, they still do.
func TestListingKeepsNobodyWaiting(t *testing.T) {
	a := newActing(t, nil, false, nil)
	list := func() (names []string, err error) {
		for v, err := range a.Volumes(t.Context()) {
			if err != nil {
				return nil, err
			}
			names = append(names, v.Name)
		}
		return names, nil
	}
	listing := func() (end func(), listed <-chan []string, failed <-chan error) {
		begun, ended := make(chan struct{}), make(chan struct{})
		stop := func() { close(begun); <-ended }
		a.kernel.stops.Store(&stop)
		names, errs := make(chan []string, 1), make(chan error, 1)
		go func() {
			got, err := list()
			names <- got
			errs <- err
		}()
		testfs.Receive(t, begun)
		a.kernel.stops.Store(nil)
		return func() { close(ended) }, names, errs
	}
	stat := func(name string) error {
		return inTime(t, "stat", func() error { return second(a.Stat(t.Context(), name)) })
	}

	a.kernel.children = append(a.kernel.children, volumeNamed("hand-made"))
	end, listed, failed := listing()
	require.NoError(t, stat("a"))
	require.NoError(t, inTime(t, "change", func() error {
		a.volumes.set("new", dataset{own: true})
		return nil
	}))
	require.NoError(t, stat("new"))
	end()
	assert.ElementsMatch(t, []string{"a", "hand-made", "new"}, testfs.Receive(t, listed))
	require.NoError(t, testfs.Receive(t, failed))
	require.NoError(t, stat("hand-made"))

	failure := error(&zfsctl.Error{Op: "list", Name: "pool", Err: unix.EIO})
	a.kernel.err.Store(&failure)
	end, _, failed = listing()
	end()
	require.ErrorIs(t, testfs.Receive(t, failed), unix.EIO)
	require.NoError(t, stat("a"), "it is known")

	// A list while another process changes something does not hide that change.
	a.kernel.err.Store(nil)
	end, _, failed = listing()
	other := fakeIndex(t, a.zfs, a.dir)
	other.doubt()
	end()
	require.NoError(t, testfs.Receive(t, failed))
	before := a.kernel.loads.Load()
	require.NoError(t, stat("a"))
	assert.Equal(t, before+1, a.kernel.loads.Load())
}

// TestReadDestroyed: the answer of destroy.lua, and answers that it does not give.
func TestReadDestroyed(t *testing.T) {
	d, err := readDestroyed(nvlist.List{"errno": int64(16), "blockers": nvlist.List{"1": "b", "2": "a"}, "more": true})
	require.NoError(t, err)
	assert.Equal(t, destroyed{errno: unix.EBUSY, blockers: []string{"a", "b"}, more: true}, d)
	assert.Equal(t, "a, b and others", d.names())
	d, err = readDestroyed(nvlist.List{"errno": int64(0), "blockers": nvlist.List{}})
	require.NoError(t, err)
	assert.Equal(t, destroyed{}, d)
	for _, odd := range []any{nil, "x", nvlist.List{}, nvlist.List{"errno": "x"}} {
		_, err := readDestroyed(odd)
		assert.Error(t, err, odd)
	}
}

// TestErrorsOfKernel: errors of calls are found by their errno.
func TestErrorsOfKernel(t *testing.T) {
	err := refused(unix.EEXIST)
	assert.True(t, isRefused(err))
	assert.True(t, isRefused(&zfsctl.ProgramError{Said: "words", Err: err}))
	assert.False(t, isRefused(errors.New("other")))
	assert.False(t, isRefused(nil))
}
