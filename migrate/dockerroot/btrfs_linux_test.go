package dockerroot

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

func btrfsSample(t *testing.T) *sample {
	r := newTestRoot(t, testfs.Btrfs(t)+"/docker", "btrfs")
	r.Content = nil
	return fill(r)
}

func TestBtrfs(t *testing.T) {
	sample := btrfsSample(t)
	s := open(t, sample.testRoot)
	inv, err := s.Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, sample.inventory(), inv)
	for _, l := range inv.Layers {
		c, err := s.Open(t.Context(), l.ID)
		require.NoError(t, err)
		assert.Equal(t, sample.Path("btrfs/subvolumes/"+l.ID), c.Volume)
		require.NoError(t, c.Close())
	}
}

// A removal takes nested subvolumes too, and such as are read-only.
func TestBtrfsRemove(t *testing.T) {
	sample := btrfsSample(t)
	check := sample.addOthers()
	subvolume := func(dir, name string) {
		at, err := os.Open(sample.Path(dir))
		require.NoError(t, err)
		defer at.Close()
		require.NoError(t, btrfsctl.CreateSubvolume(int(at.Fd()), name, nil))
	}
	setReadOnly := func(dir string) {
		at, err := os.Open(sample.Path(dir))
		require.NoError(t, err)
		defer at.Close()
		require.NoError(t, btrfsctl.SetReadOnly(int(at.Fd()), true))
	}
	web := sample.TreeName(sample.web.Mount)
	sample.Mkdir(web + "/var/lib")
	subvolume(web+"/var/lib", "nested")
	sample.Mkdir(web + "/var/lib/nested/more")
	subvolume(web+"/var/lib/nested/more", "nested")
	sample.Write(web+"/var/lib/nested/more/nested/file", "")
	for _, dir := range []string{web + "/var/lib/nested/more/nested", web + "/var/lib/nested", web, sample.TreeName(sample.a.ID)} {
		setReadOnly(dir)
	}
	subvolume("btrfs/subvolumes", "unknown")
	subvolume("volumes", "other")

	require.NoError(t, open(t, sample.testRoot).Remove(t.Context()))
	require.NoDirExists(t, sample.Path("btrfs"))
	require.NoDirExists(t, sample.Path("image/btrfs"))
	check()
	assert.Equal(t, []string{"docker/volumes/other"}, testfs.Subvolumes(t, sample.Path("..")))
}

// A subvolume that is mounted somewhere is in use.
func TestBtrfsInUse(t *testing.T) {
	sample := btrfsSample(t)
	s := open(t, sample.testRoot)
	require.NoError(t, s.InUse(t.Context()))
	unmount := mountOn(t, sample.Path(sample.TreeName(sample.b.ID)), t.TempDir(), "", unix.MS_BIND, "")
	require.ErrorIs(t, s.InUse(t.Context()), errdefs.ErrFailedPrecondition)
	unmount()
	testfs.Free(t, func() error { return s.InUse(t.Context()) })
}
