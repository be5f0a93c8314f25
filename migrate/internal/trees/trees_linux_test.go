package trees

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

var long = time.Date(2020, 3, 4, 5, 6, 7, 890, time.UTC)

// grow makes a tree with all kinds of files.
func grow(t *testing.T, dir string) {
	t.Helper()
	put(t, dir, "etc/passwd", "root")
	put(t, dir, "etc/hosts", "localhost")
	put(t, dir, "usr/bin/tool", strings.Repeat("tool", 5000))
	require.NoError(t, os.Link(filepath.Join(dir, "usr/bin/tool"), filepath.Join(dir, "usr/bin/link")))
	require.NoError(t, os.Symlink("../usr/bin/tool", filepath.Join(dir, "etc/tool")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "etc/pipe"), 0o600))
	require.NoError(t, unix.Mknod(filepath.Join(dir, "etc/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, os.Lchown(filepath.Join(dir, "etc/hosts"), 7, 8))
	require.NoError(t, unix.Setxattr(filepath.Join(dir, "etc/hosts"), "user.note", []byte("x"), 0))
	put(t, dir, "var/log/a/b", "deep")
	settle(t, dir)
}

func put(t *testing.T, dir, name, data string) {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(data), 0o640))
}

// settle gives everything a time.
func settle(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		require.NoError(t, err)
		ts := unix.NsecToTimespec(long.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

func at(t *testing.T, path string, when time.Time) {
	t.Helper()
	ts := unix.NsecToTimespec(when.UnixNano())
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// pair makes a subvolume with a tree, and a snapshot of it.
func pair(t *testing.T) (a, b string) {
	t.Helper()
	mnt := testfs.Btrfs(t)
	a, b = filepath.Join(mnt, "a"), filepath.Join(mnt, "b")
	run(t, "btrfs", "subvolume", "create", a)
	grow(t, a)
	run(t, "btrfs", "subvolume", "snapshot", a, b)
	return a, b
}

func run(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.Close()) })
	return f
}

// edits are single changes of the tree, with the changes that they make.
var edits = map[string]struct {
	do   func(t *testing.T, dir string)
	want []string
	how  string // of the difference that Verify finds
}{
	"nothing":  {func(*testing.T, string) {}, nil, ""},
	"new file": {func(t *testing.T, d string) { put(t, d, "var/new", "x") }, []string{"C /var", "A /var/new"}, "time"},
	"gone": {func(t *testing.T, d string) {
		require.NoError(t, os.Remove(filepath.Join(d, "etc/hosts")))
		at(t, filepath.Join(d, "etc"), long)
	}, []string{"C /etc", "D /etc/hosts"}, "it is missing"},
	"extra": {func(t *testing.T, d string) {
		put(t, d, "var/log/extra", "x")
		at(t, filepath.Join(d, "var/log"), long)
	}, []string{"C /var", "C /var/log", "A /var/log/extra"}, "the source does not have it"},
	"mode":  {func(t *testing.T, d string) { require.NoError(t, os.Chmod(filepath.Join(d, "etc"), 0o700)) }, []string{"C /etc"}, "mode"},
	"owner": {func(t *testing.T, d string) { require.NoError(t, os.Lchown(filepath.Join(d, "etc/tool"), 3, 4)) }, []string{"C /etc", "C /etc/tool"}, "owner"},
	"time":  {func(t *testing.T, d string) { at(t, filepath.Join(d, "etc/hosts"), long.Add(1)) }, []string{"C /etc", "C /etc/hosts"}, "time"},
	"attribute": {func(t *testing.T, d string) {
		require.NoError(t, unix.Setxattr(filepath.Join(d, "etc/passwd"), "user.note", []byte("y"), 0))
	}, []string{"C /etc", "C /etc/passwd"}, "attribute user.note"},
	"attribute's value": {func(t *testing.T, d string) {
		require.NoError(t, unix.Setxattr(filepath.Join(d, "etc/hosts"), "user.note", []byte("y"), 0))
	}, []string{"C /etc", "C /etc/hosts"}, "attribute user.note"},
	"record": {func(t *testing.T, d string) {
		require.NoError(t, unix.Setxattr(filepath.Join(d, "etc/hosts"), "trusted.overlay.origin", []byte("y"), 0))
	}, nil, ""},
	"target": {func(t *testing.T, d string) {
		require.NoError(t, os.Remove(filepath.Join(d, "etc/tool")))
		require.NoError(t, os.Symlink("../usr/bin/look", filepath.Join(d, "etc/tool")))
		settle(t, d)
	}, []string{"C /etc", "C /etc/tool"}, "target"},
	"device": {func(t *testing.T, d string) {
		require.NoError(t, os.Remove(filepath.Join(d, "etc/null")))
		require.NoError(t, unix.Mknod(filepath.Join(d, "etc/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
		settle(t, d)
	}, []string{"C /etc", "C /etc/null"}, "device"},
	"type": {func(t *testing.T, d string) {
		require.NoError(t, os.RemoveAll(filepath.Join(d, "var/log")))
		put(t, d, "var/log", "file")
		settle(t, d)
	}, []string{"C /var", "C /var/log"}, "type"},
	"new directory": {func(t *testing.T, d string) {
		require.NoError(t, os.Remove(filepath.Join(d, "etc/passwd")))
		put(t, d, "etc/passwd/x/y", "file")
		settle(t, d)
	}, []string{"C /etc", "C /etc/passwd", "A /etc/passwd/x", "A /etc/passwd/x/y"}, "type"},
	"a link more": {func(t *testing.T, d string) {
		require.NoError(t, os.Link(filepath.Join(d, "usr/bin/tool"), filepath.Join(d, "etc/more")))
		settle(t, d)
	}, []string{"C /etc", "A /etc/more", "C /usr", "C /usr/bin", "C /usr/bin/link", "C /usr/bin/tool"}, "the source does not have it"},
	"a link less": {func(t *testing.T, d string) {
		path := filepath.Join(d, "usr/bin/link")
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.WriteFile(path, data, 0o640))
		settle(t, d)
	}, []string{"C /usr", "C /usr/bin", "C /usr/bin/link", "C /usr/bin/tool"}, "hard link"},
	"bytes": {func(t *testing.T, d string) {
		require.NoError(t, os.WriteFile(filepath.Join(d, "etc/passwd"), []byte("toor"), 0o640))
		settle(t, d)
	}, []string{"C /etc", "C /etc/passwd"}, "content"},
}

func TestEdits(t *testing.T) {
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			edit.do(t, b)
			changes, err := Changes(t.Context(), open(t, b), open(t, a))
			require.NoError(t, err)
			var got []string
			for _, c := range changes {
				got = append(got, c.String())
			}
			assert.Equal(t, edit.want, got)

			// The changed tree differs from the source.
			err = Verify(t.Context(), open(t, b), open(t, a), nil, migrate.Whole)
			checkVerdict(t, err, edit.how)
			// The same for a tree of which the source says nothing: an empty directory of changes.
			empty := filepath.Join(filepath.Dir(a), "empty")
			require.NoError(t, os.Mkdir(empty, 0o755))
			err = Verify(t.Context(), open(t, b), open(t, empty), open(t, a), migrate.Overlay)
			if edit.how == "" {
				require.NoError(t, err)
			} else if name != "a link less" && name != "a link more" || err != nil { // each of the files is as below
				require.ErrorIs(t, err, errdefs.ErrDataLoss)
			}
		})
	}
}

func checkVerdict(t *testing.T, err error, how string) {
	t.Helper()
	if how == "" {
		require.NoError(t, err)
		return
	}
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	assert.ErrorContains(t, err, how)
}

// TestChangesOfNew: without a tree below, everything is new.
func TestChangesOfNew(t *testing.T) {
	a, _ := pair(t)
	changes, err := Changes(t.Context(), open(t, a), open(t, t.TempDir()))
	require.NoError(t, err)
	for _, c := range changes {
		assert.Equal(t, archive.ChangeType(archive.ChangeAdd), c.Kind, c.Path)
	}
	assert.Len(t, changes, 14)
}

// TestVerifyOverlay has the kernel's overlayfs make changes of a tree, and compares them with the tree that it shows.
func TestVerifyOverlay(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, d string) // of the mounted overlay
		break_ func(t *testing.T, d string) // of the whole tree, afterwards
		how    string
	}{
		"equal": {func(*testing.T, string) {}, func(*testing.T, string) {}, ""},
		"kept": {func(*testing.T, string) {}, func(t *testing.T, d string) {
			put(t, d, "etc/hosts", "changed!!")
			at(t, filepath.Join(d, "etc/hosts"), long)
		}, "only the layer below has it"},
		"lost": {func(*testing.T, string) {}, func(t *testing.T, d string) {
			require.NoError(t, os.Remove(filepath.Join(d, "etc/hosts")))
			at(t, filepath.Join(d, "etc"), long)
		}, "the layer below has it"},
		"whiteout ignored": {func(*testing.T, string) {}, func(t *testing.T, d string) {
			put(t, d, "var/log/a/b", "deep")
			settle(t, filepath.Join(d, "var/log/a"))
		}, "differs"},
		"opaque ignored": {func(*testing.T, string) {}, func(t *testing.T, d string) {
			put(t, d, "usr/bin/tool", "tool")
			at(t, filepath.Join(d, "usr/bin"), long)
		}, "the source does not have it"},
		"new one changed": {func(*testing.T, string) {}, func(t *testing.T, d string) {
			put(t, d, "etc/new", "NEW")
			at(t, filepath.Join(d, "etc/new"), long)
		}, "content"},
	} {
		t.Run(name, func(t *testing.T) {
			a, whole := pair(t)
			mnt := filepath.Dir(a)
			upper, work, merged := filepath.Join(mnt, "upper"), filepath.Join(mnt, "work"), filepath.Join(mnt, "merged")
			for _, dir := range []string{upper, work, merged} {
				require.NoError(t, os.Mkdir(dir, 0o755))
			}
			require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, "index=off,lowerdir="+a+",upperdir="+upper+",workdir="+work))
			mounted := true
			unmount := func() {
				if mounted {
					require.NoError(t, unix.Unmount(merged, 0))
				}
				mounted = false
			}
			t.Cleanup(unmount)
			for _, dir := range []string{merged, whole} {
				put(t, dir, "etc/new", "new")
				require.NoError(t, os.RemoveAll(filepath.Join(dir, "var/log/a")))
				require.NoError(t, os.RemoveAll(filepath.Join(dir, "usr/bin")))
				put(t, dir, "usr/bin/other", "other")
				require.NoError(t, os.Remove(filepath.Join(dir, "etc/passwd")))
				for _, changed := range []string{"etc/new", "etc", "var/log", "usr/bin/other", "usr/bin", "usr", "."} {
					at(t, filepath.Join(dir, changed), long)
				}
			}
			unmount()
			c.break_(t, whole)
			checkVerdict(t, Verify(t.Context(), open(t, whole), open(t, upper), open(t, a), migrate.Overlay), c.how)
		})
	}
}

// TestVerifyAufs writes the marks by hand, since kernels have no aufs.
func TestVerifyAufs(t *testing.T) {
	a, whole := pair(t)
	diff := filepath.Join(filepath.Dir(a), "diff")
	put(t, diff, "etc/.wh.passwd", "")
	put(t, diff, "usr/bin/.wh..wh..opq", "")
	put(t, diff, "usr/bin/other", "other")
	put(t, diff, ".wh..wh.plnk/1.2", "")
	require.NoError(t, os.Remove(filepath.Join(whole, "etc/passwd")))
	require.NoError(t, os.RemoveAll(filepath.Join(whole, "usr/bin")))
	put(t, whole, "usr/bin/other", "other")
	settle(t, whole)
	settle(t, diff)
	require.NoError(t, Verify(t.Context(), open(t, whole), open(t, diff), open(t, a), migrate.Aufs))
	put(t, whole, "etc/passwd", "root")
	at(t, filepath.Join(whole, "etc"), long)
	require.ErrorIs(t, Verify(t.Context(), open(t, whole), open(t, diff), open(t, a), migrate.Aufs), errdefs.ErrDataLoss)
}

func TestSize(t *testing.T) {
	a, _ := pair(t)
	n, err := Size(t.Context(), open(t, a))
	require.NoError(t, err)
	assert.Equal(t, int64(4+9+20000+4), n)
}

// TestDeep: directories that are nested too deep are an error, and cost no descriptors afterwards.
func TestDeep(t *testing.T) {
	root := t.TempDir()
	dir, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for range maxDepth + 2 {
		require.NoError(t, unix.Mkdirat(dir, "d", 0o755))
		next, err := unix.Openat(dir, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(dir))
		dir = next
	}
	require.NoError(t, unix.Close(dir))
	_, err = Size(t.Context(), open(t, root))
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.ErrorIs(t, Verify(t.Context(), open(t, root), open(t, root), nil, migrate.Whole), errdefs.ErrResourceExhausted)
	_, err = Changes(t.Context(), open(t, root), open(t, t.TempDir()))
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	run(t, "rm", "-rf", filepath.Join(root, "d"))
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := open(t, t.TempDir())
	_, err := Changes(ctx, dir, dir)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, Verify(ctx, dir, dir, nil, migrate.Whole), context.Canceled)
	_, err = Size(ctx, dir)
	require.ErrorIs(t, err, context.Canceled)
}
