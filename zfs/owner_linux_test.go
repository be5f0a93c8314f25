package zfs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/testfs"
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
	require.NoError(t, o.b.Close())
	elsewhere, err := ownerOf(o.home)
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
	elsewhere.boot = "another-boot"
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
	own, err := ownerOf(f.home)
	require.NoError(t, err)
	for _, fault := range faults {
		zfs(t, "inherit", homeProperty, f.root)
		err := f.with(t, "program", fault, f.own)
		d, statsErr := f.stats(t.Context(), f.root)
		require.NoError(t, statsErr)
		want := ""
		if err == nil {
			want = own.String()
		}
		assert.Equal(t, want, ownRecord(d), "%s: %v", fault, err)
		assert.Equal(t, fault == "interrupted-before", err != nil, "%s: %v", fault, err)
		require.NoError(t, f.own(t.Context()))
	}
}
