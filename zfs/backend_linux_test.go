package zfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// open opens a Backend on a new dataset, and closes it at the end of the test.
func open(t *testing.T) *Backend {
	t.Helper()
	root, mountpoint := testfs.ZFS(t)
	return openOn(t, root, mountpoint)
}

func openOn(t *testing.T, root, mountpoint string) *Backend {
	t.Helper()
	b, err := Open(t.Context(), filepath.Join(mountpoint, "home"), root, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

// TestOpenCancelled opens a home with a context that has ended, and finds no mount of it left.
func TestOpenCancelled(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	home := filepath.Join(mountpoint, "home")
	_, err := Open(ctx, home, root, Options{})
	require.ErrorIs(t, err, context.Canceled)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(home))
	require.NoError(t, err)
	assert.Empty(t, mounts)
}

// zfs runs zfs, as an administrator would.
func zfs(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("zfs", args...).CombinedOutput()
	require.NoError(t, err, "zfs %q: %s", args, out)
	return string(out)
}

// fill writes a file into a volume.
func fill(t *testing.T, b *Backend, volume, name string, content []byte) {
	t.Helper()
	dir, err := b.Mount(t.Context(), volume, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
	require.NoError(t, b.Unmount(t.Context(), volume))
}

func randomBytes(n int) []byte {
	content := make([]byte, n)
	_, _ = rand.Read(content)
	return content
}

// TestNoProcesses: no operation starts a process, and neither does opening the driver. Processes are counted, and then the
// operations work in a process whose kernel refuses to execute a program.
func TestNoProcesses(t *testing.T) {
	const env = "COWSHED_TEST_NO_PROCESSES" // for the child: the dataset and its mount point
	if place := strings.Fields(os.Getenv(env)); len(place) == 2 {
		refusePrograms(t)
		require.ErrorIs(t, exec.Command("zfs", "list").Run(), unix.EPERM)
		noProcesses(t, openOn(t, place[0], place[1]))
		return
	}
	noProcesses(t, open(t))
	require.NotEmpty(t, zfs(t, "list"))
	assert.NotZero(t, childFaults(t), "a process is counted")

	root, mountpoint := testfs.ZFS(t)
	child := exec.Command(os.Args[0], "-test.run=^TestNoProcesses$", "-test.v")
	child.Env = append(os.Environ(), env+"="+root+" "+mountpoint)
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	testfs.Start(t, child)
	require.NoError(t, testfs.Wait(t, child), &out)
}

// refusePrograms makes execve and execveat fail in this process from now on (seccomp(2)).
func refusePrograms(t *testing.T) {
	t.Helper()
	const number = 0 // offset in struct seccomp_data
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_EXECVE, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_EXECVEAT, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	require.Zero(t, errno, "%v", errno)
}

func noProcesses(t *testing.T, b *Backend) {
	ctx := t.Context()
	d := cowdriver.New(Name, b, cowdriver.Options{})
	works := func(what string, operation func() error) {
		t.Helper()
		before := childFaults(t)
		require.NoError(t, operation(), what)
		assert.Equal(t, before, childFaults(t), what)
	}
	limited := cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 10 << 20}}

	works("create", func() error { return d.Create("base", "", nil) })
	works("create with limit", func() error { return b.Create(ctx, "limited", limited) })
	works("get and put", func() error { _, err := d.Get("base", ""); return errors.Join(err, d.Put("base")) })
	works("exists", func() error { assert.True(t, d.Exists("base")); assert.False(t, d.Exists("absent")); return nil })
	works("first child, which seals", func() error { return d.CreateReadWrite("child", "base", nil) })
	works("second child", func() error { return d.CreateReadWrite("second", "base", nil) })
	works("child with limit", func() error { return b.Clone(ctx, "third", "base", limited) })
	works("get and put of a child", func() error { _, err := d.Get("child", ""); return errors.Join(err, d.Put("child")) })
	fill(t, b, "child", "file", []byte("x"))
	works("changes", func() error {
		changes, err := d.Changes("child", "base")
		assert.Len(t, changes, 1)
		return err
	})
	assert.EqualValues(t, 1, d.CompareStats().Native, "%v", d.CompareStats().Walked)
	works("usage", func() error { _, err := b.Usage(ctx, "child"); return err })
	works("set limit", func() error { return d.SetLimit(ctx, "child", 1<<30) })
	works("remove", func() error { return d.Remove("child") })
	works("remove what is not there", func() error { return d.Remove("child") })
	works("remove the second", func() error { return d.Remove("second") })
	works("remove one with a limit", func() error { return d.Remove("third") })
	works("remove a sealed one", func() error { return d.Remove("base") })
	works("remove a parent", func() error {
		return errors.Join(b.Create(ctx, "parent", limited), b.Clone(ctx, "child", "parent", limited),
			b.Remove(ctx, "parent"), second(b.Retained(ctx)), b.Remove(ctx, "child"))
	})
	works("create with an owner", func() error { return b.Create(ctx, "owned", cowcommon.VolumeOptions{UID: 1, GID: 1}) })
	works("view, keep and restore", func() error {
		k, err := b.Keep(ctx, "owned")
		require.NoError(t, err)
		return errors.Join(closeView(b.View(ctx, "owned")), k.Restore(ctx), k.Close())
	})
	works("rename", func() error { return b.Rename(ctx, "owned", "renamed") })
	works("send and receive", func() error {
		require.NoError(t, b.Seal(ctx, "renamed"))
		v, err := b.View(ctx, "renamed")
		require.NoError(t, err)
		var stream bytes.Buffer
		require.NoError(t, b.Send(ctx, &stream, nil, v))
		return errors.Join(v.Close(), b.Receive(ctx, "received", "", &stream))
	})
	works("list", func() error { return listAll(ctx, b) })
	works("open and close", func() error {
		again, err := Open(ctx, b.home, b.root, Options{})
		require.NoError(t, err)
		return again.Close()
	})
	for _, options := range [][]string{nil, {"zfs.fsname=" + b.root}} {
		works("open the driver and close it", func() error {
			d, err := Init(b.home, options, user.IdentityMapping{})
			require.NoError(t, err)
			return d.Cleanup()
		})
	}
}

// childFaults is the number of page faults of the processes that this process has started and waited for. Each process
// has some.
func childFaults(t *testing.T) int64 {
	t.Helper()
	var usage unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_CHILDREN, &usage))
	return usage.Minflt
}

// TestForeign: datasets and snapshots of others are neither shown nor destroyed. If they depend on a layer, its removal
// fails and names them, whether it has clones or not.
func TestForeign(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	zfs(t, "create", b.root+"/other")
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	b.volumes.invalidate()

	for v, err := range b.Volumes(ctx) {
		require.NoError(t, err)
		assert.Equal(t, "base", v.Name)
	}
	_, err := b.Stat(ctx, "other")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = b.Mount(ctx, "other", "")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorIs(t, b.Create(ctx, "other", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	require.ErrorIs(t, b.Remove(ctx, "other"), errdefs.ErrFailedPrecondition)
	zfs(t, "list", b.root+"/other")

	for _, name := range []string{"without clones", "top"} {
		for _, foreign := range []struct{ name, make string }{
			{b.datasetOf("base") + "@autosnap_daily", "snapshot"},
			{b.datasetOf("base") + "/child", "create"},
		} {
			zfs(t, foreign.make, foreign.name)
			err := b.Remove(ctx, "base")
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
			require.ErrorContains(t, err, foreign.name, name)
			assert.NotContains(t, err.Error(), b.datasetOf("top"))
			zfs(t, "list", foreign.name)
			zfs(t, "destroy", foreign.name)
		}
		if name == "top" {
			continue
		}
		require.NoError(t, b.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	}
	v, err := b.Stat(ctx, "base")
	require.NoError(t, err)
	assert.True(t, v.Sealed)
	require.NoError(t, b.Remove(ctx, "base"))
	require.NoError(t, b.Remove(ctx, "top"))
}

// TestManyForeign: an error names sixteen snapshots of others at most.
func TestManyForeign(t *testing.T) {
	b := open(t)
	require.NoError(t, b.Create(t.Context(), "base", cowcommon.VolumeOptions{}))
	for i := range 20 {
		require.NoError(t, b.zfs.kernel.Snapshot(b.datasetOf(fmt.Sprintf("base@%s-%02d", strings.Repeat("s", 150), i))))
	}
	err := b.Remove(t.Context(), "base")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "and others depend on it")
	assert.Equal(t, 16, strings.Count(err.Error(), "base@"))
	zfs(t, "destroy", b.datasetOf("base@%"))
	require.NoError(t, b.Remove(t.Context(), "base"))
}

// TestNamesOfOthers: if an administrator takes a name behind the Backend's back, the error is of the right kind. If an
// administrator destroys a layer, it is gone.
func TestNamesOfOthers(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	_, err := b.volumes.all(ctx)
	require.NoError(t, err)
	zfs(t, "create", b.datasetOf("taken"))
	require.ErrorIs(t, b.Create(ctx, "taken", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.ErrorIs(t, b.Rename(ctx, "base", "taken"), errdefs.ErrAlreadyExists)

	zfs(t, "destroy", b.datasetOf("base"))
	_, err = b.Mount(ctx, "base", "")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	zfs(t, "destroy", b.datasetOf("base"))
	require.ErrorIs(t, b.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}), errdefs.ErrNotFound)
	require.NoError(t, b.Remove(ctx, "base"))
	require.ErrorIs(t, b.Create(ctx, strings.Repeat("n", 200), cowcommon.VolumeOptions{}), errdefs.ErrInvalidArgument)
}

// TestMobyLayout opens datasets that moby's driver has made.
func TestMobyLayout(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	base, top := strings.Repeat("ab", 32), strings.Repeat("cd", 32)+"-init"
	zfs(t, "create", "-o", "mountpoint=legacy", root+"/"+base)
	zfs(t, "snapshot", root+"/"+base+"@123")
	zfs(t, "clone", "-o", "mountpoint=legacy", "-o", "quota=50M", root+"/"+base+"@123", root+"/"+top)
	zfs(t, "destroy", "-d", root+"/"+base+"@123")
	zfs(t, "create", "-o", "mountpoint=legacy", root+"/not-an-id-of-mobys")

	b := openOn(t, root, mountpoint)
	ctx := t.Context()
	var names []string
	for v, err := range b.Volumes(ctx) {
		require.NoError(t, err)
		names = append(names, v.Name)
	}
	assert.ElementsMatch(t, []string{base, top}, names)
	v, err := b.Stat(ctx, top)
	require.NoError(t, err)
	assert.Equal(t, base, v.Parent)
	assert.Equal(t, quota.Limit{Bytes: 50 << 20}, v.Limit)
	assert.False(t, v.Sealed)
	fill(t, b, base, "f", []byte("base"))
	require.NoError(t, b.Clone(ctx, "child", base, cowcommon.VolumeOptions{}))
	// The snapshot that moby's driver has taken goes with top, of which ZFS takes care.
	for _, name := range []string{base, "child", top} {
		require.NoError(t, b.Remove(ctx, name))
	}
	assert.Equal(t, []string{root, root + "/not-an-id-of-mobys"}, strings.Fields(zfs(t, "list", "-Hr", "-t", "all", "-o", "name", root)))
}

// TestTwoAtOnce: two Backends see each other's changes, and leave each other's volumes in use alone.
func TestTwoAtOnce(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	a, b := openOn(t, root, mountpoint), openOn(t, root, mountpoint)
	ctx := t.Context()
	require.NoError(t, a.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.ErrorIs(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)

	dir, err := a.Mount(ctx, "base", "")
	require.NoError(t, err)
	same, err := b.Mount(ctx, "base", "")
	require.NoError(t, err)
	assert.Equal(t, dir, same)
	require.NoError(t, os.WriteFile(dir+"/f", []byte("x"), 0o644))
	require.NoError(t, a.Unmount(ctx, "base"))
	assert.FileExists(t, same+"/f", "still mounted for the other")
	require.ErrorIs(t, a.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
	require.ErrorIs(t, a.Rename(ctx, "base", "renamed"), errdefs.ErrFailedPrecondition)

	// Cloned while the other Backend has it mounted: not sealed.
	require.NoError(t, a.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	v, err := b.Stat(ctx, "base")
	require.NoError(t, err)
	assert.False(t, v.Sealed)
	require.NoError(t, b.Unmount(ctx, "base"))
	assert.NoDirExists(t, dir)

	view, err := b.View(ctx, "top")
	require.NoError(t, err)
	assert.FileExists(t, view.Dir()+"/f")
	require.ErrorIs(t, a.Remove(ctx, "top"), errdefs.ErrFailedPrecondition)
	require.NoError(t, view.Close())
	require.NoError(t, a.Remove(ctx, "top"))
	_, err = b.Stat(ctx, "top")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, b.Remove(ctx, "base"), "the snapshot for the clone went with the clone")
}

// TestBusyNamesHolders: errors name the process that keeps a dataset busy. It has the dataset mounted in another mount
// namespace, or was in the dataset when it was unmounted.
func TestBusyNamesHolders(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	dir, err := b.Mount(ctx, "base", "")
	require.NoError(t, err)

	// The copy of a mount in another namespace goes with the mount point.
	copied := exec.Command("sleep", "1000")
	copied.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	require.NoError(t, copied.Start())
	require.NoError(t, b.Unmount(ctx, "base"))
	require.NoError(t, b.Remove(ctx, "base"))
	stop(t, copied)

	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	namespace := exec.Command("sh", "-c", `mount --make-rprivate / && mount -t zfs "$0" "$1" && echo mounted && exec sleep 1000`,
		b.datasetOf("base"), t.TempDir())
	namespace.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := namespace.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, namespace.Start())
	_, err = io.ReadFull(out, make([]byte, len("mounted")))
	require.NoError(t, err)
	err = b.Remove(ctx, "base")
	stop(t, namespace)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, fmt.Sprintf("mount namespace of process %d (sleep)", namespace.Process.Pid))

	_, err = b.Mount(ctx, "base", "")
	require.NoError(t, err)
	inside := exec.Command("sleep", "1000")
	inside.Dir = dir
	require.NoError(t, inside.Start())
	require.NoError(t, b.Unmount(ctx, "base"), "it vanishes from here")
	assert.NoDirExists(t, dir)
	err = b.Remove(ctx, "base")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, fmt.Sprintf("process %d (sleep)", inside.Process.Pid))
	// A process in the dataset can write, so the volume is not sealed.
	require.NoError(t, b.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	v, err := b.Stat(ctx, "base")
	require.NoError(t, err)
	assert.False(t, v.Sealed)
	stop(t, inside)
	require.NoError(t, b.Remove(ctx, "top"))
	require.NoError(t, b.Remove(ctx, "base"))
}

func stop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	assert.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
}

// TestRecovers: the next Open cleans up the remains of killed processes. While others have the home open, Remove does
// so for its volume.
func TestRecovers(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b := openOn(t, root, mountpoint)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	leave := func() {
		dead := b.datasetOf("base@" + viewPrefix + "dead")
		zfs(t, "snapshot", dead)
		dir := filepath.Join(b.views, "base@"+viewPrefix+"dead")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, unix.Mount(dead, dir, "zfs", unix.MS_RDONLY, ""))
		require.NoError(t, os.WriteFile(filepath.Join(b.locks, filepath.Base(dir)), nil, 0o600))
		require.NoError(t, os.Mkdir(b.mountpoint("base"), 0o700))
		require.NoError(t, unix.Mount(b.datasetOf("base"), b.mountpoint("base"), "zfs", 0, ""))
	}
	leave()
	require.NoError(t, b.Remove(ctx, "base"))

	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	leave()
	zfs(t, "snapshot", b.datasetOf("base@"+clonePrefix+"dead"))
	zfs(t, "create", b.datasetOf(stagingPrefix+"dead"))
	intend := func(name string, at time.Time) {
		require.NoError(t, b.intend(ctx, name, ""))
		require.NoError(t, os.Chtimes(filepath.Join(b.intents, name), at, at))
	}
	intend("base", time.Now())
	intend("never made", time.Now())
	for name, intent := range map[string]time.Time{
		"half": time.Now(), "older": time.Now().Add(time.Hour), "younger": time.Now().Add(-time.Hour),
	} {
		intend(name, intent)
		zfs(t, "create", "-o", "mountpoint=legacy", b.datasetOf(name))
	}
	intend("half and mounted", time.Now())
	zfs(t, "create", b.datasetOf("half and mounted"))
	// A half-made clone of a layer in use: the snapshot that was taken for it goes with it.
	taken := b.datasetOf("base@" + clonePrefix + "cloning")
	zfs(t, "snapshot", taken)
	intend("half a clone", time.Now())
	zfs(t, "clone", "-o", "mountpoint=legacy", taken, b.datasetOf("half a clone"))
	require.NoError(t, b.Close())
	b = openOn(t, root, mountpoint)
	assert.Equal(t, strings.Join([]string{root, b.datasetOf("base"), b.datasetOf("older"), b.datasetOf("younger"), ""}, "\n"),
		zfs(t, "list", "-Hr", "-t", "all", "-o", "name", root))
	intents, err := os.ReadDir(b.intents)
	require.NoError(t, err)
	assert.Empty(t, intents)
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	assert.NotContains(t, string(mounts), b.datasetOf("base"))
	require.NoError(t, b.Remove(ctx, "base"))
}

// TestSendReceive sends a layer and its parent to another dataset.
func TestSendReceive(t *testing.T) {
	from, to := open(t), open(t)
	ctx := t.Context()
	require.NoError(t, from.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, from, "base", "f", randomBytes(1<<20))
	require.NoError(t, from.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	fill(t, from, "top", "g", []byte("top"))

	base, err := from.View(ctx, "base")
	require.NoError(t, err)
	defer func() { assert.NoError(t, base.Close()) }()
	top, err := from.View(ctx, "top")
	require.NoError(t, err)
	defer func() { assert.NoError(t, top.Close()) }()
	var whole, increment bytes.Buffer
	require.NoError(t, from.Send(ctx, &whole, nil, base))
	require.NoError(t, from.Send(ctx, &increment, base, top))
	assert.Less(t, increment.Len(), whole.Len()/2)

	require.NoError(t, to.Receive(ctx, "base", "", bytes.NewReader(whole.Bytes())))
	require.ErrorIs(t, to.Receive(ctx, "base", "", bytes.NewReader(whole.Bytes())), errdefs.ErrAlreadyExists)
	require.NoError(t, to.Receive(ctx, "top", "base", &increment))
	v, err := to.Stat(ctx, "top")
	require.NoError(t, err)
	assert.Equal(t, "base", v.Parent)
	assert.True(t, v.Sealed)
	dir, err := to.Mount(ctx, "top", "")
	require.NoError(t, err)
	assert.FileExists(t, dir+"/f")
	assert.FileExists(t, dir+"/g")
	require.NoError(t, to.Unmount(ctx, "top"))

	require.ErrorIs(t, to.Receive(ctx, "bad", "absent", bytes.NewReader(whole.Bytes())), errdefs.ErrNotFound)
}

// TestLimits: both scopes are enforced. A limit below the present size is refused.
func TestLimits(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "image", randomBytes(8<<20))
	const size = 12 << 20
	for scope, fits := range map[quota.Scope]int{quota.ScopeLayer: 10 << 20, quota.ScopeTotal: 2 << 20} {
		name := scope.String()
		limit := quota.Limit{Bytes: size, Scope: scope}
		require.NoError(t, b.Clone(ctx, name, "base", cowcommon.VolumeOptions{Limit: limit}))
		fill(t, b, name, "fits", randomBytes(fits))
		dir, err := b.Mount(ctx, name, "")
		require.NoError(t, err)
		require.NoError(t, syncFilesystem(dir))
		err = os.WriteFile(dir+"/too-much", randomBytes(16<<20), 0o644)
		require.ErrorIs(t, err, unix.EDQUOT, name)
		require.NoError(t, os.Remove(dir+"/too-much"), "deleting works")
		require.NoError(t, b.Unmount(ctx, name))

		err = b.SetLimit(ctx, name, quota.Limit{Bytes: 1 << 20, Scope: scope})
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "holds")
		require.NoError(t, b.SetLimit(ctx, name, quota.Limit{}))
		b.volumes.invalidate()
		v, err := b.Stat(ctx, name)
		require.NoError(t, err)
		assert.Zero(t, v.Limit)
		fill(t, b, name, "no-limit", randomBytes(16<<20))
	}
}

// TestStatus: the keys are those of moby's driver.
func TestStatus(t *testing.T) {
	b := open(t)
	status := map[string]string{}
	for _, line := range b.Status(t.Context()) {
		status[line[0]] = line[1]
	}
	pool, _, _ := strings.Cut(b.root, "/")
	assert.Equal(t, pool, status["Zpool"])
	assert.Equal(t, "ONLINE", status["Zpool Health"])
	assert.Equal(t, b.root, status["Parent Dataset"])
	assert.Equal(t, "no", status["Parent Quota"])
	assert.Equal(t, "0", status["Removed Layers With Children"])
	assert.Equal(t, "0", status["Space Used By Removed Layers"])
	for _, key := range []string{"Space Used By Parent", "Space Available", "Compression"} {
		assert.NotEmpty(t, status[key], key)
	}
	zfs(t, "set", "quota=1G", b.root)
	assert.Contains(t, b.Status(t.Context()), [2]string{"Parent Quota", "1073741824"}, "read afresh")
}

// ownPool makes a pool of 256 MiB in a sparse file, in a directory of size bytes. With a smaller size the file may
// outgrow its space.
func ownPool(t *testing.T, size int) (pool, dir string) {
	t.Helper()
	return testfs.OwnZpool(t, 256<<20, int64(size))
}

func run(t *testing.T, command string, args ...string) {
	t.Helper()
	out, err := exec.Command(command, args...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", command, args, out)
}

// TestPoolFull: on a full pool creating fails and changes nothing, and removing works.
func TestPoolFull(t *testing.T) {
	pool, _ := ownPool(t, 512<<20)
	b, err := Open(t.Context(), t.TempDir()+"/home", pool, Options{})
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Close()) }()
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	dir, err := b.Mount(ctx, "base", "")
	require.NoError(t, err)
	err = os.WriteFile(dir+"/all", randomBytes(300<<20), 0o644)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, b.Unmount(ctx, "base"))

	for i := 0; err != nil && i < 3; i++ {
		if err = b.Create(ctx, fmt.Sprintf("more-%d", i), cowcommon.VolumeOptions{}); err != nil {
			assert.ErrorContains(t, err, "space")
			_, statErr := b.Stat(ctx, fmt.Sprintf("more-%d", i))
			require.ErrorIs(t, statErr, errdefs.ErrNotFound)
		}
	}
	require.NoError(t, b.Remove(ctx, "base"))
	testfs.Free(t, func() error { return b.Create(ctx, "after", cowcommon.VolumeOptions{}) }) // OpenZFS frees in the background
}

// TestPoolExported: errors say that a pool has been exported. When it is imported again, it is used again.
func TestPoolExported(t *testing.T) {
	pool, dir := ownPool(t, 512<<20)
	b, err := Open(t.Context(), t.TempDir()+"/home", pool, Options{})
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Close()) }()
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	run(t, "zpool", "export", pool)
	for what, err := range map[string]error{
		"create": b.Create(ctx, "new", cowcommon.VolumeOptions{}),
		"mount":  second(b.Mount(ctx, "base", "")),
		"view":   second(b.View(ctx, "base")),
		"remove": b.Remove(ctx, "base"),
	} {
		require.ErrorIs(t, err, errdefs.ErrUnavailable, what)
		require.ErrorContains(t, err, "zpool import", what)
	}
	run(t, "zpool", "import", "-d", dir, "-o", "cachefile=none", pool)
	fill(t, b, "base", "f", []byte("back"))
	require.NoError(t, b.Remove(ctx, "base"))
}

func second[T any](_ T, err error) error { return err }

// TestHintsOfRelatives: grandchildren and siblings are compared by hints of the kernel, strangers by a walk.
func TestHintsOfRelatives(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "a", cowcommon.VolumeOptions{}))
	fill(t, b, "a", "f", []byte("a"))
	for _, step := range [][2]string{{"b", "a"}, {"c", "b"}, {"sibling", "a"}} {
		require.NoError(t, b.Clone(ctx, step[0], step[1], cowcommon.VolumeOptions{}))
		fill(t, b, step[0], step[0], []byte("x"))
	}
	require.NoError(t, b.Create(ctx, "stranger", cowcommon.VolumeOptions{}))
	d := cowdriver.New(Name, b, cowdriver.Options{})
	for _, pair := range []struct {
		top, base, want string
		native          bool
	}{
		{"b", "a", "[{/b A}]", true},
		{"c", "b", "[{/c A}]", true},
		{"c", "a", "[{/b A} {/c A}]", true},
		{"sibling", "b", "[{/b D} {/sibling A}]", true},
		{"a", "c", "[{/b D} {/c D}]", true},
		{"stranger", "c", "[{/b D} {/c D} {/f D}]", false},
		{"a", "a", "[]", true},
	} {
		c, err := d.Compare(ctx, pair.top, pair.base, cowcommon.Auto)
		require.NoError(t, err)
		assert.Equal(t, pair.want, fmt.Sprint(c.Changes))
		assert.Equal(t, pair.native, c.Native, "%s against %s: %s", pair.top, pair.base, c.Reason)
		require.NoError(t, c.Close())
	}
	assert.Equal(t, map[string]uint64{"unrelated": 1}, d.CompareStats().Walked)
	require.NoError(t, b.Clone(ctx, "d", "c", cowcommon.VolumeOptions{}))
	for _, name := range []string{"c", "b"} {
		require.NoError(t, b.Remove(ctx, name))
	}
	c, err := d.Compare(ctx, "d", "a", cowcommon.Auto)
	require.NoError(t, err)
	assert.Equal(t, "[{/b A} {/c A}]", fmt.Sprint(c.Changes))
	assert.True(t, c.Native, "by way of removed volumes: %s", c.Reason)
	require.NoError(t, c.Close())

	v, err := b.View(ctx, "a")
	require.NoError(t, err)
	defer func() { assert.NoError(t, v.Close()) }()
	_, err = b.Hints(ctx, stranger{v}, v)
	require.ErrorIs(t, err, treediff.ErrNoHints)

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = b.zfs.changedObjects(cancelled, b.sealOf("a"), b.sealOf("sibling"))
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, b.Seal(ctx, "sibling"))
	objects, err := b.zfs.changedObjects(ctx, b.sealOf("a"), b.sealOf("sibling"))
	require.NoError(t, err)
	assert.NotEmpty(t, objects)
}

type stranger struct{ cowcommon.View }
