package zfs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// owned is a dataset with a home that has it open, and another home.
type owned struct {
	t              *testing.T
	root           string
	home, other    string
	b              *Backend
	stagingDataset string
}

func newOwned(t *testing.T) *owned {
	t.Helper()
	root, mountpoint := testfs.ZFS(t)
	o := &owned{t: t, root: root, home: filepath.Join(mountpoint, "home"), other: t.TempDir() + "/other"}
	o.b = openOn(t, root, mountpoint)
	o.stagingDataset = o.b.datasetOf(stagingPrefix + "1")
	zfs(t, "create", "-o", "mountpoint=none", o.stagingDataset) // as while it makes something
	return o
}

// refuses expects that the other home is not opened, and that nothing of the first is cleaned up.
func (o *owned) refuses(ctx context.Context) {
	o.t.Helper()
	b, err := Open(ctx, o.other, o.root, Options{})
	if err == nil {
		assert.NoError(o.t, b.Close())
	}
	require.ErrorIs(o.t, err, errdefs.ErrFailedPrecondition)
	for _, says := range []string{o.home, o.other, o.root, "zfs inherit " + homeProperty} {
		require.ErrorContains(o.t, err, says)
	}
	there, err := o.b.zfs.exists(ctx, o.stagingDataset)
	require.NoError(o.t, err)
	assert.True(o.t, there)
}

// opens expects that a home is opened, and closes it.
func (o *owned) opens(home string) {
	o.t.Helper()
	b, err := Open(o.t.Context(), home, o.root, Options{})
	require.NoError(o.t, err)
	require.NoError(o.t, b.Close())
}

// TestTwoHomes: a dataset is open in one home at a time.
func TestTwoHomes(t *testing.T) {
	o := newOwned(t)
	o.refuses(t.Context())
	o.opens(o.home) // beside itself

	t.Run("covered", func(t *testing.T) { // as the home of another container is
		require.NoError(t, unix.Mount("cover", filepath.Dir(o.home), "tmpfs", 0, ""))
		defer func() { assert.NoError(t, unix.Unmount(filepath.Dir(o.home), 0)) }()
		o.refuses(t.Context())
	})
	t.Run("reading alone", func(t *testing.T) {
		b, err := OpenReadOnly(t.Context(), o.other, o.root, Options{}, cowcommon.ErrReadOnly)
		require.NoError(t, err)
		require.NoError(t, b.Close())
	})

	require.NoError(t, o.b.Close())
	o.opens(o.other)
	o.opens(o.home) // the other is closed

	b, err := Open(t.Context(), o.other, o.root, Options{})
	require.NoError(t, err)
	_, err = Open(t.Context(), o.home, o.root, Options{})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.NoError(t, b.Close())
	require.NoError(t, os.RemoveAll(o.other))
	o.opens(o.home) // the other is gone
}

// TestOwnerElsewhere: the home of a process that cannot be seen counts until the machine starts again, or the administrator says
// that it is gone.
func TestOwnerElsewhere(t *testing.T) {
	o := newOwned(t)
	load, err := o.b.loadOf(t.Context())
	require.NoError(t, err)
	require.NoError(t, o.b.Close())
	elsewhere, err := ownerOf(o.home, load)
	require.NoError(t, err)
	elsewhere.pids, elsewhere.inode = "pid:[1]", elsewhere.inode+1<<40
	set := func(record string) { zfs(t, "set", homeProperty+"="+record, o.root) }
	o.b, err = Open(t.Context(), o.home, o.root, Options{})
	require.NoError(t, err)
	zfs(t, "create", "-o", "mountpoint=none", o.stagingDataset)
	defer func() { assert.NoError(t, o.b.Close()) }()

	set(elsewhere.String())
	o.refuses(t.Context())
	set("a record of " + o.home + "to come")
	o.refuses(t.Context())
	zfs(t, "inherit", homeProperty, o.root)
	o.opens(o.other)
	zfs(t, "create", "-o", "mountpoint=none", o.stagingDataset) // the other home has cleaned up
	elsewhere.boot = "of-a-container"
	set(elsewhere.String())
	o.refuses(t.Context())
	elsewhere.load++
	set(elsewhere.String())
	o.opens(o.other)
}

// TestSetOwner: of two homes that take a dataset at the same time, one gets it.
func TestSetOwner(t *testing.T) {
	o := newOwned(t)
	d, err := o.b.stats(t.Context(), o.root)
	require.NoError(t, err)
	record := ownRecord(d)
	own, known := parseOwner(record)
	require.True(t, known)
	assert.Equal(t, own.String(), record)
	assert.Equal(t, o.home, own.home)

	one, two := own, own
	one.home, two.home = "/a path of one", "/two"
	now, err := o.b.setOwner(t.Context(), record, one)
	require.NoError(t, err)
	assert.Equal(t, one.String(), now)
	now, err = o.b.setOwner(t.Context(), record, two)
	require.NoError(t, err)
	assert.Equal(t, one.String(), now)
	read, known := parseOwner(now)
	assert.True(t, known)
	assert.Equal(t, one, read)

	// A dataset below it does not have its record.
	zfs(t, "create", "-o", "mountpoint=none", o.root+"/below")
	d, err = o.b.stats(t.Context(), o.root+"/below")
	require.NoError(t, err)
	assert.Empty(t, ownRecord(d))
	inherited, _ := d.Properties.Text(homeProperty)
	assert.True(t, strings.HasSuffix(inherited, one.home))
	assert.FileExists(t, homedir.LockFile(o.home))
}

// TestSetOwnerInterrupted: the answer of an interrupted change of the record agrees with the record.
func TestSetOwnerInterrupted(t *testing.T) {
	f := openFaulty(t)
	load, err := f.loadOf(t.Context())
	require.NoError(t, err)
	own, err := ownerOf(f.home, load)
	require.NoError(t, err)
	for _, fault := range faults {
		zfs(t, "inherit", homeProperty, f.root)
		err := f.with(t, "program", fault, func(ctx context.Context) error { return f.own(ctx, true) })
		d, statsErr := f.stats(t.Context(), f.root)
		require.NoError(t, statsErr)
		want := ""
		if err == nil {
			want = own.String()
		}
		assert.Equal(t, want, ownRecord(d), "%s: %v", fault, err)
		assert.Equal(t, fault == "interrupted-before", err != nil, "%s: %v", fault, err)
		require.NoError(t, f.own(t.Context(), true))
	}
}

// ownedKernel has a record, and a pool of a load guid.
type ownedKernel struct {
	*fakeKernel
	record string
	load   uint64
	before func() // called before the record is replaced; nil: nothing
}

func (k *ownedKernel) Stats(name string) (zfsctl.Dataset, error) {
	return zfsctl.Dataset{Name: name, Properties: zfsctl.Properties{homeProperty: nvlist.List{"value": k.record, "source": name}}}, nil
}

func (k *ownedKernel) PoolProperties(string) (zfsctl.Properties, error) {
	return zfsctl.Properties{"load_guid": nvlist.List{"value": k.load}}, nil
}

func (k *ownedKernel) Program(_, _ string, argv []string) (any, error) {
	if k.before != nil {
		k.before()
	}
	if k.record == argv[2] {
		k.record = argv[3]
	}
	return nvlist.List{"errno": int64(0), "record": k.record}, nil
}

// owning is a Backend with a home that has a lock file, on a dataset whose record is that of another home.
type owning struct {
	*acting
	pool       *ownedKernel
	own, other owner
	end        func() // of the server of the other home
}

// waitForPending waits until nothing happens in the background any more.
func (o *owning) waitForPending(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return o.pendingNow() == 0 }, testfs.Patience, time.Millisecond)
}

func newOwning(t *testing.T) *owning {
	t.Helper()
	o := &owning{acting: newActing(t, nil, false, nil), end: func() {}}
	o.pool = &ownedKernel{fakeKernel: o.kernel, load: 1<<64 - 1}
	o.zfs.kernel, o.root = o.pool, "pool"
	o.own, o.other = ownerAt(t, o.home), ownerAt(t, t.TempDir())
	return o
}

// ownerAt makes a lock file in a home, and returns the home's record.
func ownerAt(t *testing.T, home string) owner {
	t.Helper()
	require.NoError(t, os.WriteFile(homedir.LockFile(home), nil, 0o600))
	own, err := ownerOf(home, 1<<64-1)
	require.NoError(t, err)
	return own
}

// TestOwnerDecides: which records a home replaces. The home of the record has its lock held.
func TestOwnerDecides(t *testing.T) {
	for name, test := range map[string]struct {
		record   func(o *owning) string
		replaced bool
	}{
		"none":                    {func(*owning) string { return "" }, true},
		"unknown":                 {func(*owning) string { return "something else" }, false},
		"of the first format":     {func(o *owning) string { return "boot pid:[1] 2 3 " + o.other.home }, false},
		"open":                    {func(o *owning) string { return o.other.String() }, false},
		"of another boot":         {func(o *owning) string { o.other.boot = "another"; return o.other.String() }, false},
		"of another import":       {func(o *owning) string { o.other.load--; return o.other.String() }, false},
		"of both":                 {func(o *owning) string { o.other.boot = "another"; o.other.load--; return o.other.String() }, true},
		"in other processes":      {func(o *owning) string { o.other.pids = "pid:[1]"; return o.other.String() }, false},
		"gone in other processes": {func(o *owning) string { o.other.pids, o.other.home = "pid:[1]", "/gone"; return o.other.String() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOwning(t)
			lock, err := os.Open(homedir.LockFile(o.other.home))
			require.NoError(t, err)
			defer lock.Close()
			require.NoError(t, flock.Shared(t.Context(), lock))
			record := test.record(o)
			o.pool.record = record
			err = o.Backend.own(t.Context(), true)
			if test.replaced {
				require.NoError(t, err)
				assert.Equal(t, o.own.String(), o.pool.record)
				return
			}
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorContains(t, err, "zfs inherit "+homeProperty+" pool")
			assert.Equal(t, record, o.pool.record)
		})
	}
}

// TestOwnerIsSame: a home is the same by its lock file, unless no process of the record can live.
func TestOwnerIsSame(t *testing.T) {
	own := owner{boot: "boot", load: 1, pids: "pid:[1]", device: 2, inode: 3, home: "/a home"}
	read, known := parseOwner(own.String())
	require.True(t, known)
	assert.Equal(t, own, read)
	for name, test := range map[string]struct {
		change func(o *owner)
		same   bool
	}{
		"path":            {func(o *owner) { o.home = "/b" }, true},
		"processes":       {func(o *owner) { o.pids = "pid:[2]" }, true},
		"boot":            {func(o *owner) { o.boot = "other" }, true},
		"import":          {func(o *owner) { o.load++ }, true},
		"boot and import": {func(o *owner) { o.boot = "other"; o.load++ }, false},
		"device":          {func(o *owner) { o.device++ }, false},
		"inode":           {func(o *owner) { o.inode++ }, false},
	} {
		other := own
		test.change(&other)
		assert.Equal(t, test.same, own.isSame(other), name)
	}
}

// TestOwnerRenewed: the record of a home says how its processes are seen that have it open now.
func TestOwnerRenewed(t *testing.T) {
	for name, test := range map[string]struct {
		change func(is *owner)
		alone  bool
		pids   string // afterwards; "": those of this process
	}{
		"the same":                          {func(*owner) {}, false, ""},
		"another path":                      {func(is *owner) { is.home = "/elsewhere" }, false, ""},
		"another path, alone":               {func(is *owner) { is.home = "/elsewhere" }, true, ""},
		"another import":                    {func(is *owner) { is.load-- }, false, ""},
		"another boot id":                   {func(is *owner) { is.boot = "another" }, false, ""},
		"other processes":                   {func(is *owner) { is.pids = "pid:[1]" }, false, manyPIDs},
		"other processes, alone":            {func(is *owner) { is.pids = "pid:[1]" }, true, ""},
		"processes of several":              {func(is *owner) { is.pids = manyPIDs }, false, manyPIDs},
		"processes of several, alone":       {func(is *owner) { is.pids = manyPIDs }, true, ""},
		"other processes, but before":       {func(is *owner) { is.pids, is.boot = "pid:[1]", "another"; is.load-- }, false, ""},
		"other processes, at another place": {func(is *owner) { is.pids, is.home = "pid:[1]", "/elsewhere" }, false, manyPIDs},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOwning(t)
			is, want := o.own, o.own
			test.change(&is)
			if test.pids != "" {
				want.pids = test.pids
			}
			o.pool.record = is.String()
			for range 2 {
				require.NoError(t, o.Backend.own(t.Context(), test.alone))
				assert.Equal(t, want.String(), o.pool.record)
			}
		})
	}
}

// TestOwnerLeft: while the change of the record is left to itself, the home of the record stays locked.
func TestOwnerLeft(t *testing.T) {
	o := newOwning(t)
	end := make(chan struct{})
	o.pool.record = o.other.String()
	o.pool.before = func() {
		setState(t, o.dir, "SUSPENDED")
		<-end
	}
	err := o.Backend.own(t.Context(), true)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "zpool clear")
	lock, err := os.Open(homedir.LockFile(o.other.home))
	require.NoError(t, err)
	defer lock.Close()
	free, err := flock.TryShared(lock)
	require.NoError(t, err)
	assert.False(t, free, "the other home could open the dataset")

	setState(t, o.dir, "ONLINE")
	close(end)
	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	require.NoError(t, flock.Shared(ctx, lock))
	o.waitForPending(t)
}

// TestOwnerReadOnly: the lock of a home counts on a filesystem that is read-only by now.
func TestOwnerReadOnly(t *testing.T) {
	testfs.Root(t)
	o := newOwning(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("home", dir, "tmpfs", 0, ""))
	defer func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	o.pool.record = ownerAt(t, dir).String()
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	lock, err := os.Open(homedir.LockFile(dir))
	require.NoError(t, err)
	require.NoError(t, flock.Shared(t.Context(), lock))
	require.ErrorIs(t, o.Backend.own(t.Context(), true), errdefs.ErrFailedPrecondition)
	require.NoError(t, flock.Release(lock))
	require.NoError(t, o.Backend.own(t.Context(), true))
	assert.Equal(t, o.own.String(), o.pool.record)
}

// TestOwnerUnknown: a home whose lock cannot be tried counts as open, and the error gives advice.
func TestOwnerUnknown(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(t *testing.T, o *owning)
		says  string
	}{
		"a symbolic link": {func(t *testing.T, o *owning) {
			require.NoError(t, os.Remove(homedir.LockFile(o.other.home)))
			require.NoError(t, os.Symlink("lock", homedir.LockFile(o.other.home)))
		}, unix.ELOOP.Error()},
		"no answer": {func(t *testing.T, o *owning) {
			o.end = testfs.DeadServer(t, o.other.home)
			o.zfs.lockFor = time.Millisecond
		}, "its filesystem has not answered for 1ms"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOwning(t)
			o.pool.record = o.other.String()
			test.spoil(t, o)
			testfs.Within(t, func() {
				err := o.Backend.own(t.Context(), true)
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
				require.ErrorContains(t, err, test.says)
				require.ErrorContains(t, err, "zfs inherit "+homeProperty+" pool")
			})
			assert.Equal(t, o.other.String(), o.pool.record)
			o.end()
			o.waitForPending(t)
		})
	}
}
