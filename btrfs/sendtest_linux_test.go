package btrfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// sender makes subvolumes on a real btrfs and their send streams.
type sender struct {
	t   testing.TB
	dir string // mount point
	fd  int
}

func newSender(t testing.TB) *sender {
	t.Helper()
	s := &sender{t: t, dir: testfs.Btrfs(t)}
	s.fd = s.open(s.dir)
	return s
}

// open opens a directory until the test ends.
func (s *sender) open(dir string) int {
	s.t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(s.t, err, dir)
	s.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// create makes an empty subvolume and returns its path.
func (s *sender) create(name string) string {
	s.t.Helper()
	require.NoError(s.t, btrfsctl.CreateSubvolume(s.fd, name, nil))
	return filepath.Join(s.dir, name)
}

// snapshot makes a snapshot of the subvolume at source and returns its path.
func (s *sender) snapshot(source, name string, readOnly bool) string {
	s.t.Helper()
	fd, err := unix.Open(source, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(s.t, err)
	defer unix.Close(fd)
	require.NoError(s.t, btrfsctl.Snapshot(s.fd, name, fd, readOnly, nil))
	return filepath.Join(s.dir, name)
}

// destroy removes a subvolume.
func (s *sender) destroy(name string) {
	s.t.Helper()
	require.NoError(s.t, btrfsctl.DestroySubvolume(s.fd, name))
}

// send returns the stream of the read-only subvolume at top, incremental from the subvolume at base unless base is "".
func (s *sender) send(base, top string, flags uint64, version uint32) *os.File {
	s.t.Helper()
	stream, err := s.trySend(base, top, flags, version)
	require.NoError(s.t, err)
	return stream
}

// trySend is send for streams at which the kernel may fail.
func (s *sender) trySend(base, top string, flags uint64, version uint32) (*os.File, error) {
	s.t.Helper()
	stream, err := os.CreateTemp(s.t.TempDir(), "stream")
	require.NoError(s.t, err)
	s.t.Cleanup(func() { stream.Close() })
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(s.t, err)
	defer unix.Close(fd)
	var parent uint64
	if base != "" {
		parent = s.info(base).ID
	}
	if err := btrfsctl.Send(fd, int(stream.Fd()), parent, flags, version); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	_, err = stream.Seek(0, io.SeekStart)
	require.NoError(s.t, err)
	return stream, nil
}

func (s *sender) info(subvolume string) btrfsctl.Subvolume {
	s.t.Helper()
	fd, err := unix.Open(subvolume, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(s.t, err)
	defer unix.Close(fd)
	info, err := btrfsctl.Info(fd)
	require.NoError(s.t, err)
	return info
}

// mutator changes a tree at random. Its names come from a small pool, so that they are often used again.
type mutator struct {
	t    testing.TB
	rand *rand.Rand
	root string
	log  []string // all steps, for a test that fails
}

// names are difficult names.
var names = []string{
	"a", "b", "c", "d", "e", "f", "new\nline", "\xff\xfe\x80", "with space", "-rf", `back\slash`, "tab\t",
	strings.Repeat("l", 255), "o257-7-0", "o258-8-0", "o300-9-1", ".wh.a", "...", "\u00fc", "*?[",
}

func (m *mutator) name() string { return names[m.rand.IntN(len(names))] }

// list returns the paths of the tree for which a predicate holds.
func (m *mutator) list(want func(fs.DirEntry) bool) []string {
	m.t.Helper()
	var paths []string
	require.NoError(m.t, filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != m.root && want(d) {
			paths = append(paths, path)
		}
		return err
	}))
	return paths
}

// pick returns a path of the tree for which a predicate holds, or "" if there is no such path.
func (m *mutator) pick(want func(fs.DirEntry) bool) string {
	paths := m.list(want)
	if len(paths) == 0 {
		return ""
	}
	return paths[m.rand.IntN(len(paths))]
}

func anything(fs.DirEntry) bool    { return true }
func isDir(d fs.DirEntry) bool     { return d.IsDir() }
func isFile(d fs.DirEntry) bool    { return d.Type().IsRegular() }
func isNotDir(d fs.DirEntry) bool  { return !d.IsDir() }
func isNotLink(d fs.DirEntry) bool { return d.Type() != fs.ModeSymlink }
func (m *mutator) dir() string     { return m.orRoot(m.pick(isDir)) }
func (m *mutator) newPath() string { return filepath.Join(m.dir(), m.name()) }
func (m *mutator) bytes(n int) []byte {
	b := make([]byte, m.rand.IntN(n)+1)
	for i := range b {
		b[i] = byte(m.rand.Uint32())
	}
	return b
}

func (m *mutator) orRoot(path string) string {
	if path == "" || m.rand.IntN(4) == 0 {
		return m.root
	}
	return path
}

// step changes the tree once, or not at all if the change is impossible.
func (m *mutator) step() {
	what, err := m.change()
	if err == nil {
		m.log = append(m.log, strings.ReplaceAll(what, m.root+"/", ""))
	}
}

func (m *mutator) change() (string, error) {
	switch m.rand.IntN(26) {
	case 0, 1, 2:
		path := m.newPath()
		return fmt.Sprintf("write %q", path), writeFile(path, m.bytes(20000))
	case 3, 4:
		path := m.newPath()
		return fmt.Sprintf("mkdir %q", path), os.Mkdir(path, 0o755)
	case 5:
		path := m.newPath()
		return fmt.Sprintf("symlink %q", path), os.Symlink(m.name(), path)
	case 6:
		path := m.newPath()
		return fmt.Sprintf("mknod %q", path), unix.Mknod(path, unix.S_IFIFO|0o600, 0)
	case 7, 8:
		path := m.pick(isFile)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		_, err = f.WriteAt(m.bytes(5000), int64(m.rand.IntN(10000)))
		return fmt.Sprintf("overwrite %q", path), err
	case 9:
		path := m.pick(isFile)
		return fmt.Sprintf("truncate %q", path), os.Truncate(path, int64(m.rand.IntN(10000)))
	case 10, 11, 12, 13:
		from, to := m.pick(isDir), m.newPath()
		return fmt.Sprintf("move directory %q to %q", from, to), os.Rename(from, to)
	case 14:
		from, to := m.pick(isNotDir), m.newPath()
		return fmt.Sprintf("move %q to %q", from, to), os.Rename(from, to)
	case 15, 16:
		a, b := m.pick(anything), m.pick(anything)
		return fmt.Sprintf("exchange %q and %q", a, b), unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	case 17:
		path := m.pick(anything)
		return fmt.Sprintf("remove %q", path), os.RemoveAll(path)
	case 18, 19:
		path, target := m.newPath(), m.pick(isNotDir)
		return fmt.Sprintf("link %q to %q", path, target), os.Link(target, path)
	case 20:
		path := m.orRoot(m.pick(isNotLink))
		return fmt.Sprintf("chmod %q", path), os.Chmod(path, fs.FileMode(0o700+m.rand.IntN(0o100)))
	case 21:
		path := m.pick(anything)
		return fmt.Sprintf("chown %q", path), os.Lchown(path, m.rand.IntN(10), m.rand.IntN(10))
	case 22:
		path := m.pick(isNotLink)
		return fmt.Sprintf("set attribute of %q", path), unix.Lsetxattr(path, "trusted."+m.name(), m.bytes(100), 0)
	case 23:
		path := m.pick(anything)
		if err := os.RemoveAll(path); err != nil || path == "" {
			return "", err
		}
		return fmt.Sprintf("replace %q by a file", path), writeFile(path, m.bytes(100))
	case 24:
		path := m.pick(isNotDir)
		if err := os.Remove(path); err != nil {
			return "", err
		}
		return fmt.Sprintf("replace %q by a directory", path), os.Mkdir(path, 0o700)
	default:
		from, to := m.pick(isFile), m.newPath()
		return fmt.Sprintf("clone %q to %q", from, to), reflink(from, to)
	}
}

// writeFile is os.WriteFile that does not wait for the reader of a pipe.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(b)
	return err
}

func reflink(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	defer target.Close()
	return unix.IoctlFileClone(int(target.Fd()), int(source.Fd()))
}
