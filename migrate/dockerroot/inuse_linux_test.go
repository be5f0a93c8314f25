package dockerroot

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// An engine that runs has its databases locked.
func TestInUseByEngine(t *testing.T) {
	for _, name := range []string{
		"volumes/metadata.db", "network/files/local-kv.db", "buildkit/cache.db", "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
	} {
		sample := fill(newTestRoot(t, t.TempDir(), "vfs"))
		sample.mkdir(filepath.Dir(name))
		s := open(t, sample.testRoot)
		require.NoError(t, s.InUse(t.Context()))

		db, err := bolt.Open(sample.path(name), 0o600, &bolt.Options{Timeout: time.Second})
		require.NoError(t, err)
		err = s.InUse(t.Context())
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		assert.ErrorContains(t, err, sample.path(name))
		assert.ErrorContains(t, err, filepath.Base(os.Args[0]), "it names the process")
		require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrFailedPrecondition)
		require.DirExists(t, sample.path(sample.tree(sample.a.id)))

		require.NoError(t, db.Close())
		require.NoError(t, s.InUse(t.Context()))
	}
}

// A container that outlives its engine has layers mounted.
func TestInUseByMounts(t *testing.T) {
	testfs.Root(t)
	for _, driver := range treeDrivers {
		t.Run(driver, func(t *testing.T) {
			sample := fill(newTestRoot(t, t.TempDir(), driver))
			s := open(t, sample.testRoot)
			content := sample.path(sample.tree(sample.web.mount))

			elsewhere := t.TempDir()
			unmount := mountOn(t, content, elsewhere, "", unix.MS_BIND, "")
			require.ErrorIs(t, s.InUse(t.Context()), errdefs.ErrFailedPrecondition)
			unmount()
			require.NoError(t, s.InUse(t.Context()))

			unmount = mountOn(t, "overlay", elsewhere, "overlay", 0, "lowerdir="+content+":"+sample.path(sample.tree(sample.a.id)))
			require.ErrorIs(t, s.InUse(t.Context()), errdefs.ErrFailedPrecondition)
			unmount()

			// Something else would be taken for the content of a layer.
			unmount = mountOn(t, "tmpfs", content, "tmpfs", 0, "")
			err := s.InUse(t.Context())
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			assert.ErrorContains(t, err, content)
			require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrFailedPrecondition)
			unmount()

			// Docker leaves such a mount when it is killed.
			home := sample.path(driver)
			unmount = mountOn(t, home, home, "", unix.MS_BIND, "")
			require.NoError(t, s.InUse(t.Context()))
			unmount()
		})
	}
}

// mountOn mounts something until the test ends, or until unmount is called.
func mountOn(t *testing.T, source, target, kind string, flags uintptr, data string) (unmount func()) {
	require.NoError(t, unix.Mount(source, target, kind, flags, data))
	done := false
	unmount = func() {
		if !done {
			done = true
			assert.NoError(t, unix.Unmount(target, 0))
		}
	}
	t.Cleanup(unmount)
	return unmount
}
