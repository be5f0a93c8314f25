package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// TestNativeAgreesWithWalk changes layers at random and compares the native list of changes with that of the walk.
// They must be the same, except for files and symbolic links whose content differs while lstat shows no difference.
func TestNativeAgreesWithWalk(t *testing.T) {
	inEachOwn(t, nativeAgreesWithWalk)
}

// TestNativeAgreesWithWalkOfShared does the same with shared roots, where the upper has the names that changed. Before the
// last comparisons they are folded.
func TestNativeAgreesWithWalkOfShared(t *testing.T) {
	inEachShared(t, nativeAgreesWithWalk)
}

func nativeAgreesWithWalk(t *testing.T, s system) {
	d := s.open(t, s.root(t), user.IdentityMapping{})
	rounds := 40
	if s.slow() {
		rounds = 2
	}
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%#x", seed), func(t *testing.T) { randomRound(t, d, seed) })
	}
	stats := d.CompareStats()
	assert.Empty(t, stats.Walked, "fell back to the walk")
	assert.Positive(t, stats.Native)
}

// TestNativeAgreesWithWalkOnSeeds repeats the rounds that once found a fault.
func TestNativeAgreesWithWalkOnSeeds(t *testing.T) {
	inEachOwn(t, func(t *testing.T, s system) {
		d := s.open(t, s.root(t), user.IdentityMapping{})
		seeds := []uint64{0, 1, 2, 3, 0x61aa335cd8272b2e}
		if s.slow() {
			seeds = seeds[3:]
		}
		for _, seed := range seeds {
			t.Run(fmt.Sprintf("seed=%#x", seed), func(t *testing.T) { randomRound(t, d, seed) })
		}
	})
}

// randomRound makes a layer, and two generations of children, with random operations.
func randomRound(t *testing.T, d *cowdriver.Driver, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	layers := []string{"", fmt.Sprintf("base-%x", seed), fmt.Sprintf("child-%x", seed), fmt.Sprintf("grandchild-%x", seed)}
	for i, id := range layers[1:] {
		require.NoError(t, d.CreateReadWrite(id, layers[i], nil))
		tree := &randomTree{rng: rng, root: get(t, d, id)}
		for range 10 + rng.IntN(120) {
			tree.change(t)
		}
		if layers[i] == "" {
			require.NoError(t, d.Put(id))
			continue
		}
		assertAgree(t, d, id, layers[i]) // while it is still mounted and writable
		require.NoError(t, d.Put(id))
	}
	if _, ok := cowcommon.As[cowcommon.RootStyler](d.Backend()); ok {
		require.NoError(t, cowcommon.SetRootStyle(t.Context(), d.Backend(), layers[3], cowcommon.SnapshotRoot))
	}
	assertAgree(t, d, layers[3], layers[1])
	assertAgree(t, d, layers[2], layers[1])
	for _, id := range slices.Backward(layers[1:]) {
		require.NoError(t, d.Remove(id))
	}
}

// assertAgree compares the two ways, and holds the native diff to reproducing the layer.
func assertAgree(t *testing.T, d *cowdriver.Driver, id, parent string) {
	t.Helper()
	native, err := d.Compare(t.Context(), id, parent, cowcommon.Auto)
	require.NoError(t, err)
	walked, err := d.Compare(t.Context(), id, parent, cowcommon.Walk)
	require.NoError(t, err)
	require.True(t, native.Native, native.Reason)
	unseen := unseenChanges(t, native, walked)
	if !assert.Equal(t, lines(walked.Changes), lines(unseen), "native (right) is not the walk (left)") {
		t.FailNow()
	}
	require.NoError(t, native.Close())
	require.NoError(t, walked.Close())

	copied := id + "-copy"
	diff, err := d.Diff(id, parent)
	require.NoError(t, err)
	tar, err := io.ReadAll(diff)
	require.NoError(t, err)
	require.NoError(t, diff.Close())
	require.NoError(t, d.Create(copied, parent, nil))
	_, err = d.ApplyDiff(copied, parent, bytes.NewReader(tar))
	require.NoError(t, err)
	c, err := d.Compare(t.Context(), copied, id, cowcommon.Walk)
	require.NoError(t, err)
	assert.Empty(t, lines(c.Changes), "applying the diff to a copy of the parent gives the layer")
	require.NoError(t, c.Close())
	require.NoError(t, d.Remove(copied))
}

// unseenChanges takes from the native list changes that the walk lacks and that prove to be right: files and symbolic
// links with other content, and the directories above them.
func unseenChanges(t *testing.T, native, walked *cowcommon.Comparison) []archive.Change {
	t.Helper()
	seen := map[string]archive.ChangeType{}
	for _, c := range walked.Changes {
		seen[c.Path] = c.Kind
	}
	justified := map[string]bool{}
	for _, c := range slices.Backward(native.Changes) {
		if _, ok := seen[c.Path]; ok || c.Kind != archive.ChangeModify {
			continue
		}
		if !sameContent(t, native.Dir()+c.Path, native.BaseDir()+c.Path) {
			for dir := c.Path; dir != "/"; dir = filepath.Dir(dir) {
				justified[dir] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(native.Changes), func(c archive.Change) bool {
		_, ok := seen[c.Path]
		return !ok && justified[c.Path]
	})
}

// sameContent compares the content of two files of the same type, for types whose content lstat does not show
// completely.
func sameContent(t *testing.T, a, b string) bool {
	t.Helper()
	info, err := os.Lstat(a)
	require.NoError(t, err)
	read := func(string) ([]byte, error) { return nil, nil }
	switch {
	case info.Mode().IsRegular():
		read = os.ReadFile
	case info.Mode()&os.ModeSymlink != 0:
		read = func(path string) ([]byte, error) {
			target, err := os.Readlink(path)
			return []byte(target), err
		}
	}
	one, err := read(a)
	require.NoError(t, err)
	other, err := read(b)
	require.NoError(t, err)
	return bytes.Equal(one, other)
}

func lines(changes []archive.Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %q\n", c.Kind, c.Path)
	}
	return b.String()
}

func get(t testing.TB, d *cowdriver.Driver, id string) string {
	t.Helper()
	dir, err := d.Get(id, "")
	require.NoError(t, err)
	return dir
}

// randomTree changes a tree at random. Names are few, so that operations meet.
type randomTree struct {
	rng  *rand.Rand
	root string
}

var names = []string{"a", "b", "c", "new\nline", "sp ace", "\xff\xfe", "tab\t", `back\slash`, "ü", "o257-7-0", strings.Repeat("x", 255)}

// directory picks a directory that exists.
func (r *randomTree) directory() string {
	dir := r.root
	for r.rng.IntN(3) > 0 {
		next := filepath.Join(dir, names[r.rng.IntN(len(names))])
		if info, err := os.Lstat(next); err != nil || !info.IsDir() {
			break
		}
		dir = next
	}
	return dir
}

func (r *randomTree) path() string {
	return filepath.Join(r.directory(), names[r.rng.IntN(len(names))])
}

// change does one random operation. Those that cannot be done, since a name is taken or missing, do
// nothing; any other failure ends the test.
func (r *randomTree) change(t *testing.T) {
	t.Helper()
	path, other := r.path(), r.path()
	var err error
	switch r.rng.IntN(20) {
	case 0, 1, 2:
		err = writeFile(path, r.bytes(r.rng.IntN(9000)))
	case 3, 4:
		err = os.Mkdir(path, 0o755)
	case 5, 6, 7:
		err = os.Rename(path, other)
	case 8:
		err = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
	case 9:
		err = os.Remove(path)
	case 10:
		err = os.RemoveAll(path)
	case 11, 12:
		err = os.Link(path, other)
	case 13:
		err = os.Symlink(names[r.rng.IntN(3)], path)
	case 14:
		err = unix.Mknod(path, []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK}[r.rng.IntN(3)]|0o600, int(unix.Mkdev(1, uint32(r.rng.IntN(9)))))
	case 15:
		err = unix.Fchmodat(unix.AT_FDCWD, path, uint32(r.rng.IntN(0o10000)), unix.AT_SYMLINK_NOFOLLOW)
	case 16:
		err = os.Lchown(path, r.rng.IntN(3), r.rng.IntN(3))
	case 17:
		err = unix.Lsetxattr(path, "trusted.note", r.bytes(5), 0)
	case 18:
		err = overwrite(path, r.bytes(1+r.rng.IntN(100)))
	case 19:
		err = replaceByCopy(path)
	}
	for _, expected := range []error{unix.EEXIST, unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL,
		unix.EPERM, unix.EOPNOTSUPP, unix.ENAMETOOLONG, unix.ENXIO, unix.ELOOP, unix.EBUSY, unix.EACCES, unix.EXDEV, unix.EMLINK} {
		if err == nil || errorsIs(err, expected) {
			return
		}
	}
	require.NoError(t, err)
}

func (r *randomTree) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.rng.Uint32())
	}
	return b
}
