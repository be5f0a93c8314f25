//go:build linux

package graphtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Times of modification in the tests: that of a base's content and that of later changes. They are seconds apart and
// have fractions, so that no rule about equal times interferes by accident.
var (
	baseTime = time.Date(2020, 2, 3, 4, 5, 6, 123456789, time.UTC)
	editTime = time.Date(2021, 6, 7, 8, 9, 10, 987654321, time.UTC)
)

// tree changes a directory tree. Names are relative to dir. Files that a method makes or changes, other than
// directories, get the time when. Methods end the test when they fail.
type tree struct {
	t    testing.TB
	dir  string
	when time.Time
}

// at returns the same tree with another time for the next changes.
func (w tree) at(when time.Time) tree {
	w.when = when
	return w
}

func (w tree) path(name string) string { return filepath.Join(w.dir, name) }

// file writes a regular file with mode 0644, in place if there is one.
func (w tree) file(name, content string) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(w.path(name), []byte(content), 0o644))
	w.touch(name)
}

// mkdir makes a directory with mode 0755, and those above it.
func (w tree) mkdir(name string) {
	w.t.Helper()
	require.NoError(w.t, os.MkdirAll(w.path(name), 0o755))
}

func (w tree) symlink(target, name string) {
	w.t.Helper()
	require.NoError(w.t, os.Symlink(target, w.path(name)))
	w.touch(name)
}

func (w tree) link(name, newName string) {
	w.t.Helper()
	require.NoError(w.t, os.Link(w.path(name), w.path(newName)))
}

// mknod makes a file of the type in mode: a device, a fifo or a socket.
func (w tree) mknod(name string, mode uint32, major, minor uint32) {
	w.t.Helper()
	require.NoError(w.t, unix.Mknod(w.path(name), mode, int(unix.Mkdev(major, minor))))
	w.touch(name)
}

// chmod takes the mode as the kernel does: setuid is 04000.
func (w tree) chmod(name string, mode uint32) {
	w.t.Helper()
	require.NoError(w.t, unix.Chmod(w.path(name), mode))
}

// chown does not follow a symbolic link. It clears setuid and setgid.
func (w tree) chown(name string, uid, gid int) {
	w.t.Helper()
	require.NoError(w.t, os.Lchown(w.path(name), uid, gid))
}

func (w tree) setxattr(name, key string, value []byte) {
	w.t.Helper()
	require.NoError(w.t, unix.Lsetxattr(w.path(name), key, value, 0), key)
}

func (w tree) remove(name string) {
	w.t.Helper()
	require.NoError(w.t, os.RemoveAll(w.path(name)))
}

func (w tree) rename(name, newName string) {
	w.t.Helper()
	err := os.Rename(w.path(name), w.path(newName))
	if errors.Is(err, unix.EXDEV) && w.isOverlay() { // a directory of the parent
		out, err := exec.CommandContext(w.t.Context(), "mv", "-T", w.path(name), w.path(newName)).CombinedOutput()
		require.NoError(w.t, err, string(out))
		return
	}
	require.NoError(w.t, err)
}

// exchange swaps two names, in one step where the filesystem can.
func (w tree) exchange(a, b string) {
	w.t.Helper()
	err := unix.Renameat2(unix.AT_FDCWD, w.path(a), unix.AT_FDCWD, w.path(b), unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EXDEV) && w.isOverlay() || errors.Is(err, unix.EINVAL) { // OpenZFS 2.1 cannot
		w.rename(a, "being exchanged")
		w.rename(b, a)
		w.rename("being exchanged", b)
		return
	}
	require.NoError(w.t, err)
}

// isOverlay reports whether the tree is an overlay, in which directories of the lower cannot be renamed in one step.
func (w tree) isOverlay() bool {
	w.t.Helper()
	var st unix.Statfs_t
	require.NoError(w.t, unix.Statfs(w.dir, &st))
	return st.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// touch sets a name's time of modification to when.
func (w tree) touch(name string) {
	w.t.Helper()
	setTime(w.t, w.path(name), w.when)
}

func setTime(t testing.TB, path string, when time.Time) {
	t.Helper()
	ts := unix.Timespec{Sec: when.Unix(), Nsec: int64(when.Nanosecond())}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// sparse makes a file of size bytes that holds data only at the given offsets, a block each.
func (w tree) sparse(name string, size int64, offsets ...int64) {
	w.t.Helper()
	f, err := os.Create(w.path(name))
	require.NoError(w.t, err)
	require.NoError(w.t, f.Truncate(size))
	for _, offset := range offsets {
		_, err := f.WriteAt(randomBytes(uint64(offset), 4096), offset)
		require.NoError(w.t, err)
	}
	require.NoError(w.t, f.Close())
	w.touch(name)
}

// deep makes a chain of directories whose path is longer than PATH_MAX. It calls fill with a path by which the
// innermost directory can be reached then, and returns the names of the chain.
func (w tree) deep(fill func(innermost tree)) []string {
	w.t.Helper()
	const depth = 20
	name := string(bytes.Repeat([]byte("d"), 240))

	var chain []string
	d, err := os.Open(w.dir)
	require.NoError(w.t, err)
	for i := range depth {
		name := name + strconv.Itoa(i)
		require.NoError(w.t, os.MkdirAll(procPath(d, name), 0o755))
		next, err := os.Open(procPath(d, name))
		require.NoError(w.t, err)
		require.NoError(w.t, d.Close())
		d, chain = next, append(chain, name)
	}
	fill(tree{t: w.t, dir: procPath(d, "."), when: w.when})
	require.NoError(w.t, d.Close())
	return chain
}

// procPath is a short path to a name in an open directory, however long the directory's own path is.
func procPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// capability returns the value of security.capability (struct vfs_cap_data, revision 2) with one capability
// permitted and effective.
func capability(number uint) []byte {
	const revision2, effective = 0x02000000, 1
	value := binary.LittleEndian.AppendUint32(nil, revision2|effective)
	value = binary.LittleEndian.AppendUint32(value, 1<<number) // permitted, low half
	return append(value, make([]byte, 12)...)                  // inheritable, and the high halves
}

// randomBytes returns size bytes that do not compress and that depend only on seed.
func randomBytes(seed uint64, size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	return data
}
