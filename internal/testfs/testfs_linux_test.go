package testfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBtrfsIsFreshPrivateAndRemoved(t *testing.T) {
	var mnt, dir string
	t.Run("use", func(t *testing.T) {
		mnt = Btrfs(t)
		dir = filepath.Dir(mnt)
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(mnt, &st))
		assert.EqualValues(t, unix.BTRFS_SUPER_MAGIC, st.Type)
		assert.InDelta(t, defaultSize, float64(st.Blocks)*float64(st.Bsize), 1<<20)
		entries, err := os.ReadDir(mnt)
		require.NoError(t, err)
		assert.Empty(t, entries)
		require.NoError(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("text"), 0o644))
	})
	if mnt == "" { // the subtest has said why
		return
	}
	assert.NoDirExists(t, dir)
	assert.Empty(t, mountsUnder(t, mnt))
}

func TestBtrfsParallel(t *testing.T) {
	for i := range 6 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			mnt := Btrfs(t, WithSize(256<<20))
			require.NoError(t, os.WriteFile(filepath.Join(mnt, "file"), fmt.Append(nil, i), 0o644))
			data, err := os.ReadFile(filepath.Join(mnt, "file"))
			require.NoError(t, err)
			assert.Equal(t, fmt.Sprint(i), string(data))
		})
	}
}

func TestBtrfsInTestDir(t *testing.T) {
	Root(t)
	base := t.TempDir()
	t.Setenv(DirEnv, base)
	t.Run("use", func(t *testing.T) {
		assert.Contains(t, Btrfs(t), base)
	})
	entries, err := os.ReadDir(base)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestQuotaModes(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts []BtrfsOption
		mode string // of /sys/fs/btrfs/<uuid>/qgroups/mode; "" when quotas are off
	}{
		{"off", nil, ""},
		{"simple", []BtrfsOption{WithSimpleQuota()}, "squota"},
		{"classic", []BtrfsOption{WithClassicQuota()}, "qgroup"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			mnt := Btrfs(t, tc.opts...)
			uuid, err := fsid(mnt)
			require.NoError(t, err)
			mode, err := os.ReadFile(filepath.Join("/sys/fs/btrfs", uuid, "qgroups/mode"))
			if tc.mode == "" {
				require.ErrorIs(t, err, os.ErrNotExist)
				assert.Empty(t, Qgroups(t, mnt))
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tc.mode+"\n", string(mode))
			assert.Contains(t, Qgroups(t, mnt), uint64(5))
		})
	}
}

func TestSubvolumesAndQgroups(t *testing.T) {
	mnt := Btrfs(t, WithSimpleQuota())
	assert.Empty(t, Subvolumes(t, mnt))

	odd := "new\nline \xff"
	createSubvolume(t, mnt, "a")
	require.NoError(t, os.MkdirAll(filepath.Join(mnt, "a/dir/deeper"), 0o755))
	createSubvolume(t, filepath.Join(mnt, "a/dir/deeper"), odd)
	createSubvolume(t, mnt, "b")
	assert.Equal(t, []string{"a", "a/dir/deeper/" + odd, "b"}, Subvolumes(t, mnt))
	assert.Len(t, Qgroups(t, mnt), 4)
	assert.Empty(t, StaleQgroups(t, mnt))

	require.NoError(t, unix.Rmdir(filepath.Join(mnt, "b")), "Linux 4.18 lets rmdir remove an empty subvolume")
	assert.Equal(t, []string{"a", "a/dir/deeper/" + odd}, Subvolumes(t, mnt))
	WaitDeleted(t, mnt)
	for _, id := range StaleQgroups(t, mnt) {
		assert.Contains(t, Qgroups(t, mnt), id)
	}
}

// TestSubvolumesMany needs several calls of the search ioctl.
func TestSubvolumesMany(t *testing.T) {
	mnt := Btrfs(t)
	const n = 400
	for i := range n {
		createSubvolume(t, mnt, fmt.Sprintf("%03d", i))
	}
	got := Subvolumes(t, mnt)
	require.Len(t, got, n)
	assert.Equal(t, "000", got[0])
	assert.Equal(t, "399", got[n-1])
}

// TestSubvolumesRemoved lists subvolumes while others are made and removed, with the directories that they are in.
func TestSubvolumesRemoved(t *testing.T) {
	mnt := Btrfs(t)
	createSubvolume(t, mnt, "kept")
	lists := 0
	listed := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				listed <- nil
				return
			default:
			}
			paths, err := ListSubvolumes(mnt)
			if err == nil && !slices.Contains(paths, "kept") {
				err = fmt.Errorf("kept is not in %q", paths)
			}
			if err != nil {
				listed <- err
				return
			}
			lists++
		}
	}()
	for range 500 {
		dir := filepath.Join(mnt, "dir")
		require.NoError(t, os.Mkdir(dir, 0o755))
		createSubvolume(t, dir, "removed")
		require.NoError(t, os.Remove(filepath.Join(dir, "removed")))
		require.NoError(t, os.Remove(dir))
	}
	close(stop)
	require.NoError(t, <-listed)
	t.Logf("%d lists", lists)
}

func createSubvolume(t *testing.T, dir, name string) {
	t.Helper()
	const iocSubvolCreate = 0x5000940E
	var args struct { // struct btrfs_ioctl_vol_args
		fd   int64
		name [4088]byte
	}
	copy(args.name[:], name)
	require.NoError(t, ioctlPath(dir, iocSubvolCreate, unsafe.Pointer(&args)))
}

// recorder is a test whose failures are counted instead of reported.
type recorder struct {
	testing.TB
	cleanups []func()
	failures []string
	skipped  bool
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}
func (r *recorder) FailNow() { r.Fatalf("FailNow") }
func (r *recorder) Skipf(string, ...any) {
	r.skipped = true
	runtime.Goexit()
}

// run runs f as a test would be, clean-up included.
func (r *recorder) run(f func(testing.TB)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

// failSoon makes faults be told after a second.
func failSoon(t *testing.T) {
	patience = time.Second
	t.Cleanup(func() { patience = Patience })
}

func TestBusyFilesystemFailsTheTest(t *testing.T) {
	Root(t)
	failSoon(t)
	for _, tc := range []struct {
		name string
		hold func(t *testing.T, mnt string) (release func())
		says string
	}{
		{"descriptor", func(t *testing.T, mnt string) func() {
			f, err := os.Create(filepath.Join(mnt, "held"))
			require.NoError(t, err)
			return func() { f.Close() }
		}, "held"},
		{"process", func(t *testing.T, mnt string) func() {
			cmd := exec.Command("sleep", "3600")
			cmd.Dir = mnt
			require.NoError(t, cmd.Start())
			return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		}, "cwd"},
		{"mount", func(t *testing.T, mnt string) func() {
			below := filepath.Join(mnt, "below")
			require.NoError(t, os.Mkdir(below, 0o755))
			require.NoError(t, unix.Mount("none", below, "tmpfs", 0, ""))
			return func() {}
		}, "left"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &recorder{TB: t}
			var mnt string
			release := func() {}
			r.run(func(tb testing.TB) {
				mnt = Btrfs(tb, WithSize(256<<20))
				release = tc.hold(t, mnt)
			})
			release()
			require.Len(t, r.failures, 1)
			assert.Contains(t, r.failures[0], tc.says)
			assert.Empty(t, mountsUnder(t, mnt))
		})
	}
}

func TestSkip(t *testing.T) {
	for _, tc := range []struct {
		require string
		skipped bool
		failed  bool
	}{
		{"", true, false},
		{"0", true, false},
		{"1", false, true},
	} {
		t.Run("require="+tc.require, func(t *testing.T) {
			t.Setenv(RequireEnv, tc.require)
			r := &recorder{TB: t}
			r.run(func(tb testing.TB) { Skip(tb, "no %s", "luck") })
			assert.Equal(t, tc.skipped, r.skipped)
			assert.Equal(t, tc.failed, len(r.failures) > 0)
		})
	}
}

func TestCheckLeaksFinds(t *testing.T) {
	failSoon(t)
	stop := make(chan struct{})
	t.Run("nothing", func(t *testing.T) {
		r := &recorder{TB: t}
		r.run(func(tb testing.TB) { CheckLeaks(tb) })
		assert.Empty(t, r.failures)
	})
	t.Run("goroutine", func(t *testing.T) {
		r := &recorder{TB: t}
		r.run(func(tb testing.TB) {
			CheckLeaks(tb)
			go leakedGoroutine(stop)
		})
		close(stop)
		require.Len(t, r.failures, 1)
		assert.Contains(t, r.failures[0], "leakedGoroutine")
	})
	t.Run("descriptor", func(t *testing.T) {
		r := &recorder{TB: t}
		var f *os.File
		r.run(func(tb testing.TB) {
			CheckLeaks(tb)
			var err error
			f, err = os.Open("/dev/null")
			require.NoError(t, err)
		})
		require.NoError(t, f.Close())
		require.Len(t, r.failures, 1)
		assert.Contains(t, r.failures[0], "/dev/null")
	})
	t.Run("mount", func(t *testing.T) {
		Root(t)
		dir := t.TempDir()
		r := &recorder{TB: t}
		r.run(func(tb testing.TB) {
			CheckLeaks(tb, dir)
			require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, ""))
		})
		require.NoError(t, unix.Unmount(dir, 0))
		require.Len(t, r.failures, 1)
		assert.Contains(t, r.failures[0], dir)
	})
}

func leakedGoroutine(stop <-chan struct{}) { <-stop }

func TestZFSIsFreshAndDestroyed(t *testing.T) {
	var dataset string
	t.Run("use", func(t *testing.T) {
		var dir string
		dataset, dir = ZFS(t)
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		assert.EqualValues(t, 0x2FC12FC1, st.Type)
		require.NoError(t, exec.Command("zfs", "create", dataset+"/child").Run())
	})
	if dataset == "" { // the subtest has said why
		return
	}
	assert.Error(t, exec.Command("zfs", "list", dataset).Run())
}

// TestEventually looks once more after its time is up: it may have been stopped since it looked last.
func TestEventually(t *testing.T) {
	const limit = 10 * time.Millisecond
	stopped, held := time.Now().Add(2*limit), false
	assert.True(t, eventually(limit, func() bool {
		if held {
			return true
		}
		held = true
		time.Sleep(time.Until(stopped))
		return false
	}))
	assert.False(t, eventually(limit, func() bool { return false }))
}
