package dockerroot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
)

// An engine that runs has its databases locked.
func TestInUseByEngine(t *testing.T) {
	for _, name := range []string{
		"volumes/metadata.db", "network/files/local-kv.db", "buildkit/cache.db", "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
	} {
		sample := fill(newTestRoot(t, t.TempDir(), "vfs"))
		sample.Mkdir(filepath.Dir(name))
		s := open(t, sample.testRoot)
		require.NoError(t, s.InUse(t.Context()))

		db, err := bolt.Open(sample.Path(name), 0o600, &bolt.Options{Timeout: time.Second})
		require.NoError(t, err)
		err = s.InUse(t.Context())
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		assert.ErrorContains(t, err, sample.Path(name))
		assert.ErrorContains(t, err, filepath.Base(os.Args[0]), "it names the process")
		require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrFailedPrecondition)
		require.DirExists(t, sample.Path(sample.TreeName(sample.a.ID)))

		require.NoError(t, db.Close())
		require.NoError(t, s.InUse(t.Context()))
	}
}

// No engine can start between InUse and Close.
func TestInUseKeepsEnginesOut(t *testing.T) {
	const name = "volumes/metadata.db"
	sample := fill(newTestRoot(t, t.TempDir(), "vfs"))
	sample.Mkdir(filepath.Dir(name))
	engine := func() error {
		db, err := bolt.Open(sample.Path(name), 0o600, &bolt.Options{Timeout: 50 * time.Millisecond})
		if err != nil {
			return err
		}
		return db.Close()
	}
	require.NoError(t, engine())
	s, err := Open(t.Context(), Options{Dir: sample.Dir})
	require.NoError(t, err)
	require.NoError(t, engine(), "to open the root locks nothing")
	for range 2 {
		require.NoError(t, s.InUse(t.Context()))
		require.ErrorIs(t, engine(), berrors.ErrTimeout)
		require.NoError(t, Idle(t.Context(), sample.Dir), "it is idle for another part of the migration")
		require.ErrorIs(t, engine(), berrors.ErrTimeout)
	}
	require.NoError(t, s.Close())
	require.NoError(t, engine())
}

// A container that outlives its engine has layers mounted.
func TestInUseByMounts(t *testing.T) {
	testfs.Root(t)
	for _, driver := range treeDrivers {
		t.Run(driver, func(t *testing.T) {
			sample := fill(newTestRoot(t, t.TempDir(), driver))
			s := open(t, sample.testRoot)
			content := sample.Path(sample.TreeName(sample.web.Mount))

			elsewhere := t.TempDir()
			unmount := mountOn(t, content, elsewhere, "", unix.MS_BIND, "")
			require.ErrorIs(t, s.InUse(t.Context()), errdefs.ErrFailedPrecondition)
			unmount()
			testfs.Free(t, func() error { return s.InUse(t.Context()) })

			unmount = mountOn(t, "overlay", elsewhere, "overlay", 0, "lowerdir="+content+":"+sample.Path(sample.TreeName(sample.a.ID)))
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
			home := sample.Path(driver)
			unmount = mountOn(t, home, home, "", unix.MS_BIND, "")
			testfs.Free(t, func() error { return s.InUse(t.Context()) })
			unmount()
		})
	}
}

// Overlays of another root whose path ends likewise are none of this root.
func TestInUseElsewhere(t *testing.T) {
	testfs.Root(t)
	sample := fill(newTestRoot(t, filepath.Join(t.TempDir(), "docker"), "overlay2"))
	s := open(t, sample.testRoot)
	other := newTestRoot(t, filepath.Join(t.TempDir(), "docker"), "overlay2")
	x := other.layer("x", nil)
	y := other.layer("y", x)
	lower := func(r *testRoot, ids ...string) string {
		for i, id := range ids {
			ids[i] = r.Path("overlay2/l/" + testroot.LinkOf(id))
		}
		return "lowerdir=" + strings.Join(ids, ":")
	}
	unmount := mountOn(t, "overlay", t.TempDir(), "overlay", 0, lower(other, x.ID, y.ID))
	require.NoError(t, s.InUse(t.Context()))
	unmount()
	unmount = mountOn(t, "overlay", t.TempDir(), "overlay", 0, "lowerdir="+other.Path(other.TreeName(x.ID))+":"+other.Path(other.TreeName(y.ID)))
	testfs.Free(t, func() error { return s.InUse(t.Context()) })
	unmount()
	other.Mkdir("overlay2/base/diff") // of a program with other names
	unmount = mountOn(t, "overlay", t.TempDir(), "overlay", 0, "lowerdir="+other.Path("overlay2/base/diff")+":"+other.Path("volumes"))
	testfs.Free(t, func() error { return s.InUse(t.Context()) })
	unmount()
	mountOn(t, "overlay", t.TempDir(), "overlay", 0, lower(sample.testRoot, sample.b.ID, sample.a.ID))
	require.ErrorIs(t, s.InUse(t.Context()), errdefs.ErrFailedPrecondition)
}

// Docker mounts long lists of layers by paths that are relative to the directory of the driver.
func TestInUseRelative(t *testing.T) {
	testfs.Root(t)
	sample := fill(newTestRoot(t, t.TempDir(), "overlay2"))
	s := open(t, sample.testRoot)
	target := t.TempDir()
	command := exec.Command("mount", "-t", "overlay", "overlay", "-o", "lowerdir=l/"+testroot.LinkOf(sample.b.ID)+":l/"+testroot.LinkOf(sample.a.ID), target)
	command.Dir = sample.Path("overlay2")
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%s", out)
	defer func() { assert.NoError(t, unix.Unmount(target, 0)) }()
	require.ErrorIs(t, s.InUse(t.Context()), errdefs.ErrFailedPrecondition)
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
