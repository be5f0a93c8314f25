package sharedroot_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/overlaysource"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/testfs"
)

// storeAt opens a store in that home on btrfs.
func storeAt(t *testing.T, home string) *store {
	t.Helper()
	return openStore(t, home, func() (cowcommon.Backend, error) { return btrfs.Open(t.Context(), home, btrfs.Options{}) })
}

// mountSpec mounts a volume by its MountSpec, as others do, with that source unless it is "".
func (s *store) mountSpec(name, source, at string) {
	s.t.Helper()
	spec, err := s.Backend.(cowcommon.SpecMounter).MountSpec(s.t.Context(), name, false)
	require.NoError(s.t, err)
	if source != "" {
		spec.Source = source
	}
	require.NoError(s.t, mountBy(spec, at))
	s.t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // of a test that has failed
}

// mountBy mounts a volume as its MountSpec says.
func mountBy(spec cowcommon.MountSpec, at string) error {
	return unix.Mount(spec.Source, at, spec.Type, 0, strings.ReplaceAll(strings.Join(spec.Options, ","), ",noatime", ""))
}

// isInUse checks that a volume cannot be changed as a whole.
func (s *store) isInUse(name string) {
	s.t.Helper()
	ctx := s.t.Context()
	require.ErrorIs(s.t, s.Remove(ctx, name), fault.ErrInUse)
	require.ErrorIs(s.t, cowcommon.Seal(ctx, s.Backend, name), fault.ErrInUse)
	require.ErrorIs(s.t, cowcommon.Rename(ctx, s.Backend, name, "renamed"), fault.ErrInUse)
	require.ErrorIs(s.t, cowcommon.SetRootStyle(ctx, s.Backend, name, cowcommon.SnapshotRoot), fault.ErrInUse)
}

// TestSameNames: a shared root that is mounted keeps volumes of the same names in other homes usable, on another filesystem or the
// same. Its own volume is in use.
func TestSameNames(t *testing.T) {
	for name, homes := range map[string]func(t *testing.T) (a, b string){
		"two filesystems": func(t *testing.T) (a, b string) {
			return testfs.Btrfs(t) + "/home", testfs.Btrfs(t) + "/home"
		},
		"one filesystem": func(t *testing.T) (a, b string) {
			dir := testfs.Btrfs(t)
			require.NoError(t, os.Mkdir(dir+"/other", 0o755))
			return dir + "/home", dir + "/other/home"
		},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			home, otherHome := homes(t)
			s, other := storeAt(t, home), storeAt(t, otherHome)
			for _, s := range []*store{s, other} {
				s.image("image")
				s.container("c", "image")
				s.container("d", "image")
				s.container("e", "image")
			}
			at := t.TempDir()
			s.mount("c")
			s.mountSpec("d", "", at)
			view, err := s.View(t.Context(), "e")
			require.NoError(t, err)

			for _, name := range []string{"c", "d", "e"} {
				other.edit(name, other.typical)
				otherAt := t.TempDir()
				other.mountSpec(name, "", otherAt)
				other.isInUse(name)
				require.NoError(t, unix.Unmount(otherAt, 0))
				require.NoError(t, cowcommon.Seal(t.Context(), other.Backend, name))
				require.NoError(t, other.Remove(t.Context(), name))
			}
			require.NoError(t, other.Remove(t.Context(), "image"))

			s.isInUse("c")
			s.isInUse("d")
			require.NoError(t, view.Close())
			require.NoError(t, unix.Unmount(at, 0))
			s.unmount("c")
			require.NoError(t, s.Remove(t.Context(), "c"))
			require.NoError(t, s.Remove(t.Context(), "d"))
		})
	}
}

// TestOverlayWithoutSource: overlays that a former version or somebody else mounted do not name their trees. Overlays that name
// others lie. All of them keep the volume in use.
func TestOverlayWithoutSource(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	for _, source := range []string{"c", "overlay", overlaysource.Source{Upper: 1, Lower: 2, Name: "c"}.String()} {
		at := t.TempDir()
		s.mountSpec("c", source, at)
		s.isInUse("c")
		_, err := s.Mount(t.Context(), "c", "")
		require.ErrorIs(t, err, fault.ErrInUse, "a second overlay of one upper, %s", source)
		require.NoError(t, unix.Unmount(at, 0))
	}
	s.edit("c", s.typical)
}

// TestBindOther: a volume that others have mounted by its MountSpec is mounted by a bind of their overlay. The path of the home may
// have blanks, and a mount may cover one of the places.
func TestBindOther(t *testing.T) {
	testfs.CheckLeaks(t)
	s := storeAt(t, testfs.Btrfs(t)+"/my\thome of volumes")
	s.image("image")
	s.container("c", "image")
	at, second := t.TempDir(), t.TempDir()
	s.mountSpec("c", "", at)
	isSame := func(name string) {
		t.Helper()
		s.edit("c", func(dir string) {
			require.NoError(t, os.WriteFile(dir+"/"+name, nil, 0o600))
			assert.FileExists(t, second+"/"+name)
		})
	}
	require.NoError(t, unix.Mount(at, second, "", unix.MS_BIND, ""))
	isSame("both")
	require.NoError(t, unix.Mount("none", at, "tmpfs", 0, ""))
	isSame("covered")
	require.NoError(t, unix.Unmount(second, 0))
	_, err := s.Mount(t.Context(), "c", "")
	require.ErrorIs(t, err, fault.ErrInUse, "the only place is covered")
	require.NoError(t, unix.Unmount(at, 0))
	require.NoError(t, unix.Unmount(at, 0))
	s.edit("c", func(dir string) { assert.FileExists(t, dir+"/covered") })
}

// TestUpgrade: a container goes on in an overlay that a former version has mounted, when the next version opens the home.
func TestUpgrade(t *testing.T) {
	s := newStore(t)
	s.image("image")
	for _, name := range []string{"idle", "running"} {
		s.container(name, "image")
		dir := s.mount(name)
		require.NoError(t, unix.Unmount(dir, 0))
		s.mountSpec(name, name, dir)
	}
	container := t.TempDir()
	require.NoError(t, unix.Mount(filepath.Join(s.home, "roots/running"), container, "", unix.MS_BIND, ""))
	s.crash()
	s.open()
	assert.Equal(t, []string{"running"}, overlaysBelow(t, s.home))
	s.isInUse("running")
	s.edit("running", func(dir string) {
		require.NoError(t, os.WriteFile(dir+"/new", nil, 0o600))
		assert.FileExists(t, container+"/new")
		mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
		require.NoError(t, err)
		require.Len(t, mounts, 1)
		assert.Equal(t, "running", mounts[0].Source, "the same mount")
	})
	s.isInUse("running")
	require.NoError(t, s.Close())
	s.open()
	s.isInUse("running")
	require.NoError(t, unix.Unmount(container, 0))
	require.NoError(t, s.Remove(t.Context(), "running"))
	require.NoError(t, s.Remove(t.Context(), "idle"))
}

// TestMountSpecOfMounted: while the overlay of Mount has to stay, since it is mounted elsewhere too, nobody gets a second one of its
// upper to write to.
func TestMountSpecOfMounted(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	dir, err := s.Mount(t.Context(), "c", "")
	require.NoError(t, err)
	at := t.TempDir()
	require.NoError(t, unix.Mount(dir, at, "", unix.MS_BIND, ""))
	require.NoError(t, s.Unmount(t.Context(), "c"))
	_, err = s.Backend.(cowcommon.SpecMounter).MountSpec(t.Context(), "c", false)
	require.ErrorIs(t, err, fault.ErrInUse)
	assert.ErrorContains(t, err, dir)
	require.NoError(t, unix.Unmount(at, 0))
	s.mountSpec("c", "", at)
	require.NoError(t, unix.Unmount(at, 0))
}

// TestSharersOfDamaged: a volume that cannot be looked at keeps the volume of its note, and nothing else. It can be removed.
func TestSharersOfDamaged(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	s.container("good", "image")
	dir, err := s.inner.Mount(ctx, "c", "")
	require.NoError(t, err)
	require.NoError(t, unix.Setxattr(filepath.Join(dir, sharedmark.Dir), sharedmark.Xattr, []byte("9 x"), 0))
	require.NoError(t, s.inner.Unmount(ctx, "c"))
	sharers, err := cowcommon.Sharers(ctx, s.Backend)
	require.NoError(t, err)
	require.Len(t, sharers, 1)
	assert.ElementsMatch(t, []string{"c", "good"}, sharers["image"])
	require.NoError(t, s.Remove(ctx, "c"))
}
