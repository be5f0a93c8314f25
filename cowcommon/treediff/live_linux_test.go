package treediff

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestLiveTree compares while files come and go, and directories are moved and swapped for symbolic links that lead
// out of the tree. Nothing from outside may be listed, and nothing may fail.
func TestLiveTree(t *testing.T) {
	testfs.CheckLeaks(t)
	limitOpen(t, 2)
	dir := t.TempDir()
	top, base := tree{t, filepath.Join(dir, "top")}, tree{t, filepath.Join(dir, "base")}
	outside := tree{t, filepath.Join(dir, "outside")}
	for _, f := range []tree{top, base} {
		for i := range 4 {
			f.files("a/b/c/d/e/f"+strconv.Itoa(i), "a/b/c/x"+strconv.Itoa(i), "a/y/z"+strconv.Itoa(i))
		}
	}
	outside.files("b/secret", "b/c/secret", "b/c/d/secret", "secret", "c/secret", "c/d/e/secret")
	top.symlink(outside.abs(""), "link")
	top.symlink(outside.abs("b"), "a/link")
	base.symlink(outside.abs(""), "link")

	stop := make(chan struct{})
	var changing sync.WaitGroup
	changing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			swap := func(a, b string) {
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
			switch i % 6 {
			case 0:
				swap(top.abs("a"), top.abs("link"))
				swap(top.abs("a"), top.abs("link"))
			case 1:
				swap(top.abs("a/b"), top.abs("a/link"))
				swap(top.abs("a/b"), top.abs("a/link"))
			case 2:
				_ = os.Rename(top.abs("a/b/c/d"), dir+"/moved")
				_ = os.Rename(dir+"/moved", top.abs("a/b/c/d"))
			case 3:
				_ = os.Rename(top.abs("a/b"), top.abs("b"))
				_ = os.Rename(top.abs("b"), top.abs("a/b"))
			case 4:
				_ = os.WriteFile(top.abs("a/b/c/d/e/new"), nil, 0o600)
				_ = os.Remove(top.abs("a/b/c/d/e/new"))
			case 5:
				_ = os.Mkdir(top.abs("a/y/new"), 0o700)
				_ = os.Remove(top.abs("a/y/new"))
			}
		}
	})
	defer changing.Wait()
	defer close(stop)

	deep := &Hints{}
	deep.Add("a", Deep)
	deep.Add("a/b/c/d/e/f1", Written)
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		for _, h := range []*Hints{nil, deep} {
			for _, b := range []string{base.root, ""} {
				changes, err := Compare(t.Context(), top.root, b, h)
				require.NoError(t, err)
				require.NotContains(t, text(changes), "secret")
				_, err = Size(t.Context(), top.root, changes)
				require.NoError(t, err)
			}
		}
	}
}

// TestReopenParent climbs out of directories that are where they were, moved, or gone.
func TestReopenParent(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(f tree)
		want   string // the opened file, or "" if none is opened
	}{
		{"in place", func(f tree) {}, "a/b"},
		{"child moved", func(f tree) { f.rename("a/b/c", "c") }, "a/b"},
		{"child removed", func(f tree) { f.remove("a/b/c") }, "a/b"},
		{"parent moved", func(f tree) { f.rename("a/b", "b") }, "b"},
		{"child and parent moved", func(f tree) { f.rename("a/b/c", "c"); f.rename("a", "x") }, ""},
		{"child moved, another parent", func(f tree) { f.rename("a/b/c", "c"); f.rename("a", "x"); f.dir("a/b") }, "a/b"},
		{"child moved, parent a file", func(f tree) { f.rename("a/b/c", "c"); f.remove("a/b"); f.files("a/b") }, ""},
		{"child moved, parent a symlink", func(f tree) { f.rename("a/b/c", "c"); f.rename("a", "x"); f.symlink("x", "a") }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			f := tree{t, t.TempDir()}
			f.dir("a/b/c")
			w := &worker{walk: newWalk(f.root, "", nil)}
			defer w.closeRoots()
			d, err := w.openRoots()
			require.NoError(t, err)
			defer d.close()
			for _, name := range []string{"a", "b", "c"} {
				d = &dir{parent: d, name: name, fd: [2]int{-1, -1}}
				is, err := w.openChild(d, top)
				require.NoError(t, err)
				require.Equal(t, dirKind, is)
				defer d.close()
			}
			p := d.parent
			p.close()
			c.change(f)

			require.NoError(t, w.reopenParent(d, top))
			if c.want == "" {
				assert.Equal(t, -1, p.fd[top])
				is, err := w.openChild(&dir{parent: p, name: "c", fd: [2]int{-1, -1}}, top)
				require.NoError(t, err)
				assert.Equal(t, absent, is)
				is = unknown
				require.NoError(t, w.stat(p, top, "c", &is))
				assert.Equal(t, absent, is)
				return
			}
			require.GreaterOrEqual(t, p.fd[top], 0)
			var st unix.Stat_t
			require.NoError(t, unix.Fstat(p.fd[top], &st))
			assert.Equal(t, lstat(t, f.abs(c.want)).Ino, st.Ino)
		})
	}
}

// TestCancel ends comparisons at random moments.
func TestCancel(t *testing.T) {
	testfs.CheckLeaks(t)
	top, base := tree{t, t.TempDir()}, tree{t, t.TempDir()}
	for _, f := range []tree{top, base} {
		for i := range 400 {
			f.files("a" + strconv.Itoa(i%7) + "/b" + strconv.Itoa(i%40) + "/" + strconv.Itoa(i))
		}
	}
	changes := mustCompare(t, top.root, "", nil)
	ended := 0
	for begun, tries := time.Now(), 0; tries < 100 || ended == 0 && time.Since(begun) < testfs.Patience; tries++ {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(rand.IntN(2000))*time.Microsecond, cancel)
		_, err := Compare(ctx, top.root, base.root, nil)
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
			ended++
		}
		if _, err = Size(ctx, top.root, changes); err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		timer.Stop()
		cancel()
	}
	assert.NotZero(t, ended)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Compare(ctx, top.root, base.root, nil)
	require.ErrorIs(t, err, context.Canceled)
	_, err = Size(ctx, top.root, changes)
	require.ErrorIs(t, err, context.Canceled)
}

// TestCancelContent stops in the middle of comparing the bytes of a file.
func TestCancelContent(t *testing.T) {
	testfs.CheckLeaks(t)
	f := tree{t, t.TempDir()}
	f.file("file", strings.Repeat("x", 4*chunkSize))
	w := &worker{walk: newWalk(f.root, f.root, &Hints{})}
	defer w.closeRoots()
	d, err := w.openRoots()
	require.NoError(t, err)
	defer d.close()
	same, err := w.sameBytes(d, "file")
	require.NoError(t, err)
	assert.True(t, same)
	w.stopped.Store(true)
	_, err = w.sameBytes(d, "file")
	require.ErrorIs(t, err, errStopped)
}

// TestSwappedBeforeContent gives the comparison of bytes other things than the files it was called for.
func TestSwappedBeforeContent(t *testing.T) {
	testfs.CheckLeaks(t)
	a, b := tree{t, t.TempDir()}, tree{t, t.TempDir()}
	b.files("fifo", "symlink", "gone", "longer", "dir")
	a.node("fifo", unix.S_IFIFO|0o600, 0)
	a.symlink(b.abs("symlink"), "symlink")
	a.file("longer", "content and more")
	a.dir("dir")
	w := &worker{walk: newWalk(a.root, b.root, &Hints{})}
	defer w.closeRoots()
	d, err := w.openRoots()
	require.NoError(t, err)
	defer d.close()
	for _, name := range []string{"fifo", "symlink", "gone", "longer", "dir"} {
		same, err := w.sameBytes(d, name)
		require.NoError(t, err, name)
		assert.False(t, same, name)
	}
	same, err := w.sameTarget(d, "longer")
	require.NoError(t, err)
	assert.False(t, same)
}

func TestErrors(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	f := tree{t, dir}
	f.files("file")
	for _, c := range []struct {
		top, base string
		want      error
		path      string
	}{
		{"", "", fs.ErrNotExist, ""},
		{f.abs("none"), "", fs.ErrNotExist, f.abs("none")},
		{dir, f.abs("none"), fs.ErrNotExist, f.abs("none")},
		{f.abs("file"), dir, unix.ENOTDIR, f.abs("file")},
	} {
		_, err := Compare(t.Context(), c.top, c.base, nil)
		require.ErrorIs(t, err, c.want)
		var pathErr *fs.PathError
		require.ErrorAs(t, err, &pathErr)
		assert.Equal(t, c.path, pathErr.Path)
	}
	_, err := Size(t.Context(), f.abs("none"), nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// TestUnreadable checks that an unreadable file is an error that names it, and not a shorter list.
func TestUnreadable(t *testing.T) {
	testfs.CheckLeaks(t)
	top, base := tree{t, t.TempDir()}, tree{t, t.TempDir()}
	for _, f := range []tree{top, base} {
		f.files("a/b/c", "a/d")
	}
	top.chmod("a/b", 0)
	defer top.chmod("a/b", 0o755)
	for _, pair := range [][2]string{{top.root, base.root}, {base.root, top.root}, {top.root, ""}} {
		// One worker, on a thread that is another user's and ends with its goroutine.
		errs := make(chan error)
		go func() {
			runtime.LockOSThread()
			w := newWalk(pair[0], pair[1], nil)
			defer w.closeRoots()
			d, err := w.openRoots()
			if err == nil {
				_ = unix.Setfsuid(65534)
				(&worker{walk: w}).run(d)
				err = w.err
			}
			errs <- err
		}()
		err := <-errs
		require.ErrorIs(t, err, fs.ErrPermission)
		assert.ErrorContains(t, err, top.abs("a/b"))
	}
}

// TestCapabilityByProc checks the way for kernels without getxattrat(2).
func TestCapabilityByProc(t *testing.T) {
	testfs.Root(t)
	f := tree{t, t.TempDir()}
	f.files("with", "without")
	f.symlink("with", "symlink")
	f.xattr("with", capabilityXattr, capNetRaw)
	fd, err := openRoot(f.root)
	require.NoError(t, err)
	defer unix.Close(fd)

	reads := map[string]func(dir int, name string, buf []byte) (int, error){"proc": getxattrProc}
	buf := make([]byte, 64)
	if _, err := getxattrat(fd, "with", buf); !errors.Is(err, unix.ENOSYS) {
		reads["getxattrat"] = getxattrat
	}
	for name, read := range reads {
		n, err := read(fd, "with", buf)
		require.NoError(t, err, name)
		assert.Equal(t, capNetRaw, buf[:n], name)
		for _, without := range []string{"without", "symlink"} {
			_, err = read(fd, without, buf)
			require.ErrorIs(t, err, unix.ENODATA, name)
		}
		_, err = read(fd, "none", buf)
		require.ErrorIs(t, err, unix.ENOENT, name)
	}
}
