package detect

import (
	"io/fs"
	"os"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestSimpleQuota(t *testing.T) {
	require.NoError(t, simpleQuota(fstest.MapFS{"simple_quota": {}}))
	err := simpleQuota(fstest.MapFS{"no_holes": {}})
	require.ErrorIs(t, err, graphdriver.ErrNotSupported)
	assert.ErrorContains(t, err, "6.7")
	err = simpleQuota(os.DirFS(t.TempDir() + "/absent"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NotErrorIs(t, err, graphdriver.ErrNotSupported)
}

// TestSimpleQuotaTried compares the answer of SimpleQuota with the kernel's behaviour.
func TestSimpleQuotaTried(t *testing.T) {
	dir, err := os.Open(testfs.Btrfs(t))
	require.NoError(t, err)
	defer dir.Close()
	tried := btrfsctl.EnableSimpleQuota(int(dir.Fd()))
	if said := SimpleQuota(); tried == nil {
		require.NoError(t, said)
	} else {
		require.ErrorIs(t, said, graphdriver.ErrNotSupported, "%v", tried)
	}
}

func TestSubvolSyncWait(t *testing.T) {
	dir := testfs.Btrfs(t)
	if err := SubvolSyncWait(dir); err != nil {
		require.ErrorIs(t, err, graphdriver.ErrNotSupported)
	}
	require.ErrorIs(t, SubvolSyncWait("/proc"), graphdriver.ErrNotSupported)
	require.ErrorIs(t, SubvolSyncWait(dir+"/absent"), fs.ErrNotExist)
}

func TestOpenAt2(t *testing.T) {
	if err := OpenAt2(); err != nil {
		require.ErrorIs(t, err, graphdriver.ErrNotSupported)
	}
}

func TestIDMappedMounts(t *testing.T) {
	testfs.Root(t)
	before, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for range 2 {
		if err := IDMappedMounts(testfs.Btrfs(t)); err != nil {
			require.ErrorIs(t, err, graphdriver.ErrNotSupported)
		}
	}
	err = IDMappedMounts("/proc")
	require.ErrorIs(t, err, graphdriver.ErrNotSupported)
	assert.ErrorContains(t, err, "proc of this kernel does not have them")

	after, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	assert.Len(t, after, len(before))
	_, err = unix.Wait4(-1, nil, unix.WNOHANG, nil)
	require.ErrorIs(t, err, unix.ECHILD, "no child is left")
}
