package zfsctl

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/testfs"
)

// zfs runs zfs, with whose answers those of the kernel are compared.
func zfs(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "zfs", args...)
}

func run(t *testing.T, command string, args ...string) string {
	t.Helper()
	out, err := exec.Command(command, args...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", command, args, out)
	return string(out)
}

// open returns a Control, and a dataset of its own.
func open(t *testing.T) (c *Control, root, mountpoint string) {
	t.Helper()
	root, mountpoint = testfs.ZFS(t)
	c, err := Open()
	require.NoError(t, err)
	require.NoError(t, c.Check())
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c, root, mountpoint
}

// own are properties of each kind: a choice, a number, a text, and one of a user.
func own() Values {
	return Values{"canmount": CanMountNoAuto, "quota": uint64(64 << 20), "mountpoint": "legacy", "cowshed:test": "a b\tc"}
}

// names collects the names that a list has, without the part before them.
func names(t *testing.T, list func(func(Dataset, error) bool), before string) []string {
	t.Helper()
	var names []string
	for d, err := range list {
		require.NoError(t, err)
		name, ok := strings.CutPrefix(d.Name, before)
		require.True(t, ok, d.Name)
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestZFSDatasets makes, describes, renames and destroys datasets and snapshots. The zfs command sees the same.
func TestZFSDatasets(t *testing.T) {
	c, root, _ := open(t)
	base, child := root+"/base", root+"/the child"
	require.NoError(t, c.Create(base, own()))
	assert.Equal(t, "filesystem\nnoauto\n67108864\nlegacy\na b\tc\n",
		zfs(t, "get", "-Hpo", "value", "type,canmount,quota,mountpoint,cowshed:test", base))
	require.ErrorIs(t, c.Create(base, own()), unix.EEXIST)
	require.ErrorIs(t, c.Create(root+"/absent/child", own()), unix.ENOENT)
	require.ErrorIs(t, c.Create(root+"/a@b", own()), unix.EINVAL)
	require.ErrorIs(t, c.Create(root+"/wrong", Values{"quota": "words"}), unix.EINVAL)
	require.ErrorIs(t, c.Clone(child, base+"@layer", own()), unix.ENOENT)

	require.NoError(t, c.Snapshot(base+"@layer"))
	require.ErrorIs(t, c.Snapshot(base+"@layer"), unix.EEXIST)
	require.ErrorIs(t, c.Snapshot(root+"/absent@layer"), unix.ENOENT)
	require.NoError(t, c.Clone(child, base+"@layer", own()))
	require.ErrorIs(t, c.Clone(child, base+"@layer", own()), unix.EEXIST)
	assert.Equal(t, base+"@layer\nnoauto\n67108864\nlegacy\na b\tc\n",
		zfs(t, "get", "-Hpo", "value", "origin,canmount,quota,mountpoint,cowshed:test", child))

	assertSame(t, c, base, "quota", "refquota", "creation", "used", "referenced", "available", "guid")
	assertSame(t, c, child, "quota", "refquota", "creation", "used", "referenced", "available", "guid")
	assertSame(t, c, base+"@layer", "creation", "referenced", "guid")
	d, err := c.Stats(child)
	require.NoError(t, err)
	assert.Equal(t, Dataset{Name: child, Type: Filesystem, Origin: base + "@layer"}, Dataset{d.Name, d.Type, d.IsSnapshot, d.Origin, nil})
	for name, want := range map[string]string{"mountpoint": "legacy", "cowshed:test": "a b\tc"} {
		got, ok := d.Properties.Text(name)
		assert.True(t, ok)
		assert.Equal(t, want, got)
	}
	_, ok := d.Properties.Text("cowshed:none")
	assert.False(t, ok)
	d, err = c.Stats(base + "@layer")
	require.NoError(t, err)
	assert.True(t, d.IsSnapshot)
	assert.Empty(t, d.Origin)
	_, err = c.Stats(root + "/absent")
	require.ErrorIs(t, err, unix.ENOENT)
	require.ErrorIs(t, err, fs.ErrNotExist)
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "zfs get "+root+"/absent: no such file or directory", err.Error())

	for name, want := range map[string]string{base: base + "@layer", child: base + "@layer"} {
		d, err := c.Stats(name)
		require.NoError(t, err)
		latest, _ := d.Properties.Text("prevsnap")
		assert.Equal(t, want, latest, "the latest snapshot, or the origin")
	}
	d, err = c.Stats(root)
	require.NoError(t, err)
	_, ok = d.Properties.Text("prevsnap")
	assert.False(t, ok, "there is neither")

	assert.Equal(t, []string{"base", "the child"}, names(t, c.Children(root), root+"/"))
	assert.Equal(t, []string{"layer"}, names(t, c.Snapshots(base), base+"@"))
	assert.Empty(t, names(t, c.Snapshots(child), ""))
	assert.Empty(t, names(t, c.Children(root+"/absent"), ""))
	assert.Empty(t, names(t, c.Snapshots(root+"/absent"), ""))

	require.ErrorIs(t, c.Destroy(base), unix.EBUSY, "it has a snapshot")
	require.NoError(t, c.Create(child+"/below", own()))
	require.ErrorIs(t, c.Destroy(child), unix.EEXIST, "there is a dataset below it")
	require.NoError(t, c.Destroy(child+"/below"))
	require.ErrorIs(t, c.DestroySnapshot(base+"@layer"), unix.EEXIST, "it has a clone")
	require.ErrorIs(t, c.Destroy(root+"/absent"), unix.ENOENT)
	require.NoError(t, c.DestroySnapshot(base+"@absent"))
	require.ErrorIs(t, c.Rename(child, base), unix.EEXIST)
	require.ErrorIs(t, c.Rename(root+"/absent", root+"/new"), unix.ENOENT)
	require.NoError(t, c.Rename(child, root+"/renamed"))
	assertExists(t, c, child, false)
	assertExists(t, c, root+"/renamed", true)

	require.NoError(t, c.Promote(root+"/renamed"))
	assert.Equal(t, []string{"layer"}, names(t, c.Snapshots(root+"/renamed"), root+"/renamed@"))
	require.NoError(t, c.Destroy(base))
	require.NoError(t, c.DestroySnapshot(root+"/renamed@layer"))
	require.NoError(t, c.Destroy(root+"/renamed"))
	assert.Equal(t, root+"\n", zfs(t, "list", "-Hrt", "all", "-o", "name", root))
}

// assertSame asserts that the kernel says the same of properties as zfs.
func assertSame(t *testing.T, c *Control, name string, properties ...string) {
	t.Helper()
	d, err := c.Stats(name)
	require.NoError(t, err)
	got := make(map[string]string)
	for _, property := range properties {
		n, ok := d.Properties.Number(property)
		assert.True(t, ok, property)
		got[property] = strconv.FormatUint(n, 10)
	}
	want := make(map[string]string)
	for line := range strings.Lines(zfs(t, "get", "-Hpo", "property,value", strings.Join(properties, ","), name)) {
		property, value, _ := strings.Cut(strings.TrimSpace(line), "\t")
		want[property] = value
	}
	assert.Equal(t, want, got, name)
}

func assertExists(t *testing.T, c *Control, name string, want bool) {
	t.Helper()
	got, err := c.Exists(name)
	require.NoError(t, err)
	assert.Equal(t, want, got, name)
}

// TestZFSBusy: mounted datasets and snapshots are not destroyed. Datasets that are mounted can be renamed and rolled back.
func TestZFSBusy(t *testing.T) {
	c, root, _ := open(t)
	name, dir := root+"/mounted", t.TempDir()
	require.NoError(t, c.Create(name, own()))
	require.NoError(t, c.Snapshot(name+"@empty"))
	require.NoError(t, unix.Mount(name, dir, "zfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	require.NoError(t, os.WriteFile(dir+"/file", []byte("content"), 0o644))
	require.NoError(t, c.Rollback(name, name+"@empty"))
	assert.NoFileExists(t, dir+"/file")
	require.NoError(t, c.Rename(name, root+"/renamed"))
	name = root + "/renamed"
	require.NoError(t, c.Snapshot(name+"@later"))
	require.Error(t, c.Rollback(name, name+"@empty"), "there is a later one")
	require.ErrorIs(t, c.Rollback(name, name+"@absent"), unix.ESRCH)
	require.NoError(t, c.DestroySnapshot(name+"@later"))
	require.NoError(t, c.DestroySnapshot(name+"@empty"))
	require.ErrorIs(t, c.Destroy(name), unix.EBUSY)
	require.NoError(t, unix.Unmount(dir, 0))

	require.NoError(t, c.Snapshot(name+"@mounted"))
	require.NoError(t, unix.Mount(name+"@mounted", dir, "zfs", unix.MS_RDONLY, ""))
	require.ErrorIs(t, c.DestroySnapshot(name+"@mounted"), unix.EBUSY)
	require.NoError(t, unix.Unmount(dir, 0))
	require.NoError(t, c.DestroySnapshot(name+"@mounted"))
	zfs(t, "snapshot", name+"@held")
	zfs(t, "hold", "tag", name+"@held")
	require.ErrorIs(t, c.DestroySnapshot(name+"@held"), unix.EBUSY)
	zfs(t, "release", "tag", name+"@held")
	require.NoError(t, c.DestroySnapshot(name+"@held"))
	require.NoError(t, c.Destroy(name))
}

// TestZFSSet sets properties, which the kernel may refuse.
func TestZFSSet(t *testing.T) {
	c, root, _ := open(t)
	name := root + "/a"
	require.NoError(t, c.Create(name, nil))
	require.NoError(t, c.Set(name, Values{"quota": uint64(32 << 20), "refquota": uint64(16 << 20)}))
	assert.Equal(t, "33554432\n16777216\n", zfs(t, "get", "-Hpo", "value", "quota,refquota", name))
	require.NoError(t, c.Set(name, Values{"quota": uint64(0), "refquota": uint64(0)}))
	assert.Equal(t, "0\n0\n", zfs(t, "get", "-Hpo", "value", "quota,refquota", name))
	require.ErrorIs(t, c.Set(name, Values{"quota": uint64(1)}), unix.ENOSPC, "it holds more")
	require.ErrorIs(t, c.Set(root+"/absent", Values{"quota": uint64(0)}), unix.ENOENT)
	require.Error(t, c.Set(name, Values{"no such property": "x"}))
	assert.NotContains(t, zfs(t, "get", "-Hpo", "source", "quota,refquota", name), "received")
}

// TestZFSNames: names may have up to 255 bytes, and odd ones.
func TestZFSNames(t *testing.T) {
	c, root, _ := open(t)
	long := root + "/" + strings.Repeat("n", MaxName-len(root)-len("/@s"))
	for _, name := range []string{long, root + "/a b:c.d_e-f"} {
		require.NoError(t, c.Create(name, own()))
		require.NoError(t, c.Snapshot(name+"@s"))
		assertExists(t, c, name+"@s", true)
		assert.Equal(t, []string{"s"}, names(t, c.Snapshots(name), name+"@"))
		require.ErrorIs(t, c.Snapshot(name+"@"+strings.Repeat("s", MaxName)), unix.ENAMETOOLONG)
	}
	assert.Equal(t, []string{"a b:c.d_e-f", long[len(root)+1:]}, names(t, c.Children(root), root+"/"))
	require.ErrorIs(t, c.Create(long+"xxx", own()), unix.ENAMETOOLONG)
	require.ErrorIs(t, c.Create(root+"/a\x00b", own()), unix.EINVAL)
	assertExists(t, c, long+"xxx", false)
}

// TestZFSMany lists 200 children in any order, each once, and a dataset whose properties need much room.
func TestZFSMany(t *testing.T) {
	c, root, _ := open(t)
	want := make([]string, 200)
	created := make(chan error, len(want))
	for i := range want {
		want[i] = fmt.Sprintf("child-%03d", i)
		go func() { created <- c.Create(root+"/"+want[i], own()) }()
	}
	for range want {
		require.NoError(t, testfs.Receive(t, created))
	}
	assert.Equal(t, want, names(t, c.Children(root), root+"/"))
	for d, err := range c.Children(root) {
		require.NoError(t, err)
		require.Equal(t, Filesystem, d.Type)
		quota, ok := d.Properties.Number("quota")
		require.True(t, ok)
		require.EqualValues(t, 64<<20, quota)
	}

	values := Values{}
	for i := range 60 {
		values[fmt.Sprintf("cowshed:many-%d", i)] = strings.Repeat("v", 4000)
	}
	require.NoError(t, c.Set(root+"/"+want[7], values))
	d, err := c.Stats(root + "/" + want[7])
	require.NoError(t, err)
	for name, value := range values {
		got, _ := d.Properties.Text(name)
		require.Equal(t, value, got)
	}
	assert.Equal(t, want, names(t, c.Children(root), root+"/"))
}

// TestZFSProgram: the answer of a channel program is the value that it returns.
func TestZFSProgram(t *testing.T) {
	c, root, _ := open(t)
	pool, _, _ := strings.Cut(root, "/")
	require.NoError(t, c.Create(root+"/a", own()))
	require.NoError(t, c.Snapshot(root+"/a@s"))
	answer, err := c.Program(pool, `
		local argv = (...)["argv"]
		local all = {}
		for s in zfs.list.snapshots(argv[1]) do table.insert(all, s) end
		return {errno = zfs.sync.destroy(all[1]), all = all, empty = {}, two = argv[2]}`, []string{root + "/a", "2"})
	require.NoError(t, err)
	assert.Equal(t, nvlist.List{"errno": int64(0), "all": nvlist.List{"1": root + "/a@s"}, "empty": nvlist.List{}, "two": "2"}, answer)
	assertExists(t, c, root+"/a@s", false)

	var failed *ProgramError
	_, err = c.Program(pool, `error("no reason")`, nil)
	require.ErrorAs(t, err, &failed)
	require.ErrorContains(t, err, "no reason")
	_, err = c.Program(pool, `this is no program`, nil)
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, unix.EINVAL)
	_, err = c.Program(pool, `while true do end`, nil)
	require.ErrorIs(t, err, unix.ETIME)
}

// TestZFSHistory: the pool's history has an entry as that of zfs, for each change and no failure.
func TestZFSHistory(t *testing.T) {
	c, root, _ := open(t)
	pool, _, _ := strings.Cut(root, "/")
	require.NoError(t, c.Create(root+"/a", Values{"canmount": CanMountNoAuto, "quota": uint64(1 << 30)}))
	require.Error(t, c.Create(root+"/a", nil))
	require.NoError(t, c.Snapshot(root+"/a@s"))
	require.NoError(t, c.Clone(root+"/b", root+"/a@s", nil))
	require.NoError(t, c.Set(root+"/b", Values{"quota": uint64(0)}))
	require.NoError(t, c.Rename(root+"/b", root+"/c"))
	require.NoError(t, c.Rollback(root+"/a", root+"/a@s"))
	require.NoError(t, c.Destroy(root+"/c"))
	stream := t.TempDir() + "/stream"
	file, err := os.Create(stream)
	require.NoError(t, err)
	require.NoError(t, c.Send(root+"/a@s", "", file))
	_, err = file.Seek(0, io.SeekStart)
	require.NoError(t, err)
	require.NoError(t, c.Receive(root+"/d@s", "", Values{"canmount": CanMountOff, "mountpoint": "legacy"}, file))
	require.NoError(t, file.Close())
	require.NoError(t, c.Clone(root+"/e", root+"/a@s", Values{"canmount": uint64(1)}))
	require.NoError(t, c.Snapshot(root+"/e@t"))
	file, err = os.Create(stream)
	require.NoError(t, err)
	require.NoError(t, c.Send(root+"/e@t", root+"/a@s", file))
	_, err = file.Seek(0, io.SeekStart)
	require.NoError(t, err)
	require.NoError(t, c.Receive(root+"/f@t", root+"/d@s", Values{"canmount": CanMountNoAuto}, file))
	require.NoError(t, file.Close())
	require.NoError(t, c.Promote(root+"/e"))
	_, err = c.Program(pool, `local argv = (...)["argv"]; return zfs.sync.destroy(argv[1])`, []string{root + "/a", "2"})
	require.NoError(t, err)
	require.NoError(t, c.DestroySnapshotLater(root+"/e@t"))
	require.NoError(t, c.Sync(pool))
	var got []string
	for line := range strings.Lines(run(t, "zpool", "history", pool)) {
		if _, entry, _ := strings.Cut(strings.TrimSpace(line), " "); strings.Contains(entry, root+"/") {
			got = append(got, strings.ReplaceAll(strings.ReplaceAll(entry, root, "R"), " "+pool+" ", " P "))
		}
	}
	assert.Equal(t, []string{
		"zfs create -o canmount=noauto -o quota=1073741824 R/a", "zfs snapshot R/a@s", "zfs clone R/a@s R/b", "zfs set quota=0 R/b",
		"zfs rename R/b R/c", "zfs rollback R/a@s", "zfs destroy R/c",
		"zfs receive -o canmount=off -o mountpoint=legacy R/d@s", "zfs clone -o canmount=on R/a@s R/e", "zfs snapshot R/e@t",
		"zfs receive -o origin=R/d@s -o canmount=noauto R/f@t", "zfs promote R/e", "zfs program P - R/a 2", "zfs destroy -d R/e@t",
	}, got)
}

// TestZFSStream sends a filesystem to another one, whole and incrementally.
func TestZFSStream(t *testing.T) {
	c, root, _ := open(t)
	dir := t.TempDir()
	content := bytes.Repeat([]byte("content"), 100_000)
	write := func(name, file string) {
		require.NoError(t, unix.Mount(name, dir, "zfs", 0, ""))
		require.NoError(t, os.WriteFile(dir+"/"+file, content, 0o640))
		require.NoError(t, unix.Unmount(dir, 0))
	}
	require.NoError(t, c.Create(root+"/a", own()))
	write(root+"/a", "one")
	require.NoError(t, c.Snapshot(root+"/a@s"))
	require.NoError(t, c.Clone(root+"/b", root+"/a@s", own()))
	write(root+"/b", "two")
	require.NoError(t, c.Snapshot(root+"/b@s"))

	send := func(snapshot, from string) *os.File {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() { _ = r.Close() })
		go func() {
			assert.NoError(t, c.Send(snapshot, from, w))
			_ = w.Close()
		}()
		return r
	}
	require.NoError(t, c.Receive(root+"/x@s", "", own(), send(root+"/a@s", "")))
	require.NoError(t, c.Receive(root+"/y@s", root+"/x@s", own(), send(root+"/b@s", root+"/a@s")))
	assert.Equal(t, root+"/x@s\nlegacy\nlocal\n", zfs(t, "get", "-Hpo", "value", "origin", root+"/y")+
		zfs(t, "get", "-Hpo", "value", "mountpoint", root+"/y")+zfs(t, "get", "-Hpo", "source", "mountpoint", root+"/y"))
	require.NoError(t, unix.Mount(root+"/y", dir, "zfs", 0, ""))
	for _, file := range []string{"one", "two"} {
		got, err := os.ReadFile(dir + "/" + file)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, got), file)
	}
	require.NoError(t, unix.Unmount(dir, 0))

	// The streams are those of zfs.
	got, err := io.ReadAll(send(root+"/a@s", ""))
	require.NoError(t, err)
	want, err := exec.Command("zfs", "send", root+"/a@s").Output()
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got), "%d and %d bytes", len(want), len(got))

	give := func(stream []byte) *os.File {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() { _ = r.Close() })
		go func() {
			_, _ = w.Write(stream)
			_ = w.Close()
		}()
		return r
	}
	replicated, err := exec.Command("zfs", "send", "-R", root+"/a@s").Output()
	require.NoError(t, err)
	require.ErrorIs(t, c.Receive(root+"/z@s", "", own(), give(replicated)), unix.EINVAL)
	require.ErrorIs(t, c.Receive(root+"/z@s", "", own(), give(got[:100])), io.ErrUnexpectedEOF)
	require.ErrorIs(t, c.Receive(root+"/z@s", "", own(), give(nil)), io.EOF)
	require.Error(t, c.Receive(root+"/z@s", "", own(), give(got[:len(got)/2])))
	broken := bytes.Clone(got)
	broken[len(broken)/2] ^= 1
	require.Error(t, c.Receive(root+"/z@s", "", own(), give(broken)))
	assertExists(t, c, root+"/z", false)
	require.ErrorIs(t, c.Receive(root+"/x@s", "", own(), give(got)), unix.EEXIST)

	// When nobody reads, sending ends.
	r, w, err := os.Pipe()
	require.NoError(t, err)
	time.AfterFunc(100*time.Millisecond, func() { _ = r.Close() })
	require.Error(t, c.Send(root+"/a@s", "", w))
	require.NoError(t, w.Close())
}

// TestZFSReceiveInUserNamespace receives below a dataset that was handed to a nested user namespace. Before the receive, the
// new dataset belongs to nobody.
func TestZFSReceiveInUserNamespace(t *testing.T) {
	const env = "COWSHED_TEST_RECEIVE" // for the child: the snapshot and the file with the stream
	if task := strings.Fields(os.Getenv(env)); len(task) == 2 {
		_, err := os.Stdin.Read(make([]byte, 1)) // the parent has handed the dataset over
		require.NoError(t, err)
		c, err := Open()
		require.NoError(t, err)
		stream, err := os.Open(task[1])
		require.NoError(t, err)
		require.NoError(t, c.Receive(task[0], "", Values{"canmount": CanMountNoAuto}, stream))
		return
	}
	c, root, _ := open(t)
	if version, err := os.ReadFile(versionFile); err == nil && strings.HasPrefix(string(version), "2.1.") {
		t.Skip("OpenZFS 2.1 hands no dataset to a user namespace")
	}
	require.NoError(t, c.Create(root+"/a", own()))
	require.NoError(t, c.Snapshot(root+"/a@s"))
	path := t.TempDir() + "/stream"
	file, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, c.Send(root+"/a@s", "", file))
	require.NoError(t, file.Close())
	require.NoError(t, c.Create(root+"/handed", Values{"canmount": CanMountNoAuto}))

	child := exec.Command(os.Args[0], "-test.run=^TestZFSReceiveInUserNamespace$", "-test.v")
	child.Env = append(os.Environ(), env+"="+root+"/handed/new@s "+path)
	all := []syscall.SysProcIDMap{{Size: 65536}}
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all}
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	stdin, err := child.StdinPipe()
	require.NoError(t, err)
	testfs.Start(t, child)
	run(t, "zfs", "set", "zoned=on", root+"/handed")
	run(t, "zfs", "zone", fmt.Sprintf("/proc/%d/ns/user", child.Process.Pid), root+"/handed")
	_, err = stdin.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, testfs.Wait(t, child), &out)
	assertExists(t, c, root+"/handed/new@s", true)
}

// TestZFSDiff: the records of objects that may differ have the form that package zfs reads.
func TestZFSDiff(t *testing.T) {
	c, root, _ := open(t)
	require.NoError(t, c.Create(root+"/a", own()))
	require.NoError(t, c.Snapshot(root+"/a@s"))
	require.NoError(t, c.Clone(root+"/b", root+"/a@s", own()))
	dir := t.TempDir()
	require.NoError(t, unix.Mount(root+"/b", dir, "zfs", 0, ""))
	require.NoError(t, os.WriteFile(dir+"/file", nil, 0o640))
	require.NoError(t, unix.Unmount(dir, 0))
	require.NoError(t, c.Snapshot(root+"/b@s"))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	require.NoError(t, c.Diff(root+"/a@s", root+"/b@s", w))
	require.ErrorIs(t, c.Diff(root+"/b@s", root+"/a@s", w), unix.EXDEV)
	require.NoError(t, w.Close())
	records, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NotEmpty(t, records)
	require.Zero(t, len(records)%24)
	kinds := make(map[uint64]bool)
	for ; len(records) > 0; records = records[24:] {
		kinds[binary.NativeEndian.Uint64(records)] = true
	}
	assert.Contains(t, slices.Collect(maps.Keys(kinds)), uint64(2), "objects in use")
}

// TestZFSClose: a call that is under way ends after Close.
func TestZFSClose(t *testing.T) {
	c, root, _ := open(t)
	require.NoError(t, c.Create(root+"/a", own()))
	dir := t.TempDir()
	require.NoError(t, unix.Mount(root+"/a", dir, "zfs", 0, ""))
	require.NoError(t, os.WriteFile(dir+"/file", bytes.Repeat([]byte("content"), 1<<18), 0o640))
	require.NoError(t, unix.Unmount(dir, 0))
	require.NoError(t, c.Snapshot(root+"/a@s"))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	sent := make(chan error, 1)
	go func() { sent <- c.Send(root+"/a@s", "", w) }()
	_, err = io.ReadFull(r, make([]byte, 1000))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	_, err = c.Stats(root)
	require.ErrorIs(t, err, fs.ErrClosed)
	go func() { _, _ = io.Copy(io.Discard, r) }()
	require.NoError(t, testfs.Receive(t, sent))
	require.NoError(t, w.Close())
	_, err = c.file.Stat()
	require.ErrorIs(t, err, fs.ErrClosed)
}

// TestCheck: a kernel that does not answer as the known ones is refused.
func TestCheck(t *testing.T) {
	answers := func(invalid, absent error) func(string) (Dataset, error) {
		return func(name string) (Dataset, error) {
			if name == "@" {
				return Dataset{}, invalid
			}
			return Dataset{}, absent
		}
	}
	require.NoError(t, check(answers(&Error{Err: unix.EINVAL}, &Error{Err: unix.ENOENT})))
	for _, odd := range []func(string) (Dataset, error){
		answers(nil, nil), answers(unix.EINVAL, nil), answers(nil, unix.ENOENT), answers(unix.ENOTTY, unix.ENOTTY), answers(unix.ENOENT, unix.EINVAL),
	} {
		err := check(odd)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, Known)
	}
}

// TestZFSPool: the kernel says the same of a pool as zpool. There is no pool of another name.
func TestZFSPool(t *testing.T) {
	c, root, _ := open(t)
	pool := PoolOf(root)
	properties, err := c.PoolProperties(pool)
	require.NoError(t, err)
	readOnly, ok := properties.Number("readonly")
	assert.True(t, ok)
	assert.Zero(t, readOnly)
	for _, name := range []string{"guid", "load_guid", "size"} {
		n, ok := properties.Number(name)
		assert.True(t, ok, name)
		assert.Equal(t, strings.TrimSpace(run(t, "zpool", "get", "-Hpo", "value", name, pool)), strconv.FormatUint(n, 10), name)
	}
	health, err := Health(Kstats, pool)
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(run(t, "zpool", "get", "-Hpo", "value", "health", pool)), health)
	_, err = c.PoolProperties("no-such-pool")
	require.ErrorIs(t, err, unix.ENOENT)
	_, err = Health(Kstats, "no-such-pool")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestKnownVersions(t *testing.T) {
	for version, want := range map[string]bool{
		"2.1.11-1\n": true, "2.3.2-2~bpo12+2\n": true, "2.4.0-rc1\n": true, "2.0.3-9\n": false, "0.8.6-1\n": false, "2.10.0\n": false, "": false,
	} {
		assert.Equal(t, want, isKnown(version), version)
	}
}
