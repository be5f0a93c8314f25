package sharedroot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// merged compares the tree that an overlay shows with a plain one. An overlay counts hard links of the lower that it
// hides.
var merged = treecmp.Options{Roots: true, LinksInTree: true}

// TestFoldIsTheOverlay does random operations in an overlay. A fold of a snapshot of the volume is the tree that the
// overlay shows. The names in the upper give the changes that a full comparison finds.
func TestFoldIsTheOverlay(t *testing.T) {
	mnt := testfs.Btrfs(t)
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			testFold(t, seed, newHome(t, filepath.Join(mnt, fmt.Sprint(seed))))
		})
	}
}

func TestFoldIsTheOverlayZFS(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { testFold(t, seed, newZFSHome(t)) })
	}
}

func testFold(t *testing.T, seed uint64, h home) {
	t.Helper()
	u := newUser(t, seed, h)
	for range 3 {
		u.work(1 << (seed % 8))
		u.check()
	}
}

// user changes the tree of a shared volume "v" over the volume "lower" through its overlay.
type user struct {
	*forest.Forest
	t       *testing.T
	h       home
	unmount func()
	open    []*os.File // across operations
	checks  int
}

func newUser(t *testing.T, seed uint64, h home) *user {
	t.Helper()
	h.create("lower")
	u := &user{Forest: forest.New(t, seed, h.path("lower")), t: t, h: h}
	u.Change(80)
	h.seal("lower")
	h.prepare("v", "lower")
	u.Root, u.unmount = h.mount("v", "lower")
	t.Cleanup(u.close)
	return u
}

func (u *user) close() {
	for _, f := range u.open {
		f.Close()
	}
	u.open = nil
}

// work does n operations, a third of them of the kind that overlayfs treats in its own way.
func (u *user) work(n int) {
	for range n {
		all, dirs := u.Paths()
		old, fresh := u.Pick(all), filepath.Join(u.Pick(dirs), u.Pick(forest.Names))
		if u.IntN(3) > 0 || old == u.Root || len(fresh) > len(u.Root)+1500 {
			u.Change(1)
			continue
		}
		u.special(old, fresh)
	}
}

func (u *user) special(old, fresh string) {
	t := u.t
	info, err := os.Lstat(old)
	require.NoError(t, err)
	switch u.IntN(12) {
	case 0: // a directory of the lower is EXDEV, which mv copes with
		_ = exec.Command("mv", "-f", "-T", "--", old, fresh).Run()
	case 1:
		_ = unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, fresh, unix.RENAME_EXCHANGE)
	case 2: // descriptors from before copy up
		if info.Mode().IsRegular() {
			for _, flags := range []int{os.O_RDONLY, os.O_RDWR} {
				f, err := os.OpenFile(old, flags, 0)
				require.NoError(t, err)
				u.open = append(u.open, f)
			}
		}
	case 3: // the file may be unlinked by now
		if len(u.open) > 0 {
			f := u.open[u.IntN(len(u.open))]
			_, _ = f.WriteAt(u.Content(), int64(u.IntN(5000)))
		}
	case 4:
		dir := filepath.Dir(fresh)
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
		if errors.Is(err, unix.EOPNOTSUPP) { // overlayfs before Linux 6.3
			break
		}
		require.NoError(t, err)
		_, err = unix.Write(fd, u.Content())
		require.NoError(t, err)
		_ = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, fresh, unix.AT_SYMLINK_FOLLOW)
		require.NoError(t, unix.Close(fd))
	case 5: // a whiteout, nothing, and a whiteout again
		require.NoError(t, os.RemoveAll(old))
		require.NoError(t, os.Mkdir(old, 0o750))
		require.NoError(t, os.RemoveAll(old))
	case 6: // an opaque directory
		require.NoError(t, os.RemoveAll(old))
		require.NoError(t, os.Mkdir(old, 0o750))
		for range u.IntN(4) {
			_ = os.WriteFile(filepath.Join(old, u.Pick(forest.Names)), u.Content(), 0o600)
			_ = os.Mkdir(filepath.Join(old, u.Pick(forest.Names)), 0o700)
		}
	case 7:
		require.ErrorIs(t, unix.Mknod(filepath.Join(filepath.Dir(old), "zero"), unix.S_IFCHR, 0), unix.EPERM)
	case 8:
		if info.IsDir() {
			require.NoError(t, unix.Setxattr(old, u.Pick([]string{"user.d", "trusted.d"}), u.Content()[:0], 0))
			require.NoError(t, unix.Setxattr(old, "system.posix_acl_access", forest.ACL(byte(u.IntN(3))), 0))
			_ = unix.Removexattr(old, u.Pick([]string{"user.d", "trusted.d"}))
		}
	case 9:
		times := []unix.Timespec{{Sec: 5, Nsec: int64(u.IntN(1000))}, {Sec: int64(u.IntN(1_700_000_000)), Nsec: int64(u.IntN(1000))}}
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, old, times, unix.AT_SYMLINK_NOFOLLOW))
	case 10:
		if info.Mode().IsRegular() {
			require.NoError(t, os.Truncate(old, int64(u.IntN(100_000))))
		}
	case 11:
		_ = os.Mkdir(fresh, 0o711)
		_ = os.Mkdir(filepath.Join(fresh, strings.Repeat("é", 127)+"n"), 0o711)
		_ = os.Rename(fresh, fresh+"-moved")
	}
}

// check folds a snapshot of the volume, and compares.
func (u *user) check() {
	t, h := u.t, u.h
	u.checks++
	snap := fmt.Sprint("snap-", u.checks)
	h.clone(snap, "v")
	frozen, unmount := h.view(snap, "lower")
	shown, err := treecmp.Read(frozen, merged)
	require.NoError(t, err)
	// On ZFS lower and upper are two filesystems. There, names that were linked after copy up may have different inode
	// numbers until the next mount.
	if h.dataset == "" {
		treecmp.Equal(t, u.Root, frozen, merged)
	}

	want, err := treediff.Compare(t.Context(), frozen, h.path("lower"), nil)
	require.NoError(t, err)
	hints, err := changes(t.Context(), h.open(snap+"/.cowshed/"+upperName), h.open("lower"))
	require.NoError(t, err)
	got, err := treediff.Compare(t.Context(), frozen, h.path("lower"), hints)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	unmount()

	h.fold(snap)
	plain, err := treecmp.Read(h.path(snap), merged)
	require.NoError(t, err)
	assert.Empty(t, shown.Diff(plain, merged))
	folded, err := treediff.Compare(t.Context(), h.path(snap), h.path("lower"), nil)
	require.NoError(t, err)
	assert.Equal(t, want, folded)
}
