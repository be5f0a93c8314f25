package main

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// makeLayersToRead makes a store with an image, a sealed layer with a sealed parent, and an unsealed layer.
func makeLayersToRead(t *testing.T, a at) {
	t.Helper()
	path, _ := writeImage(t, "app:1", 1)
	a.ok(t, "import", path)
	a.ok(t, "create", "base")
	a.with(t, "base", func(dir string) { write(t, filepath.Join(dir, "file"), "base") })
	a.ok(t, "create", "mid", "--parent", "base")
	a.with(t, "mid", func(dir string) { write(t, filepath.Join(dir, "mid"), "mid") })
	a.ok(t, "create", "web", "--parent", "mid")
	a.with(t, "web", func(dir string) { write(t, filepath.Join(dir, "web"), "web") })
}

// assertReads asserts that the store of makeLayersToRead can be read, that nothing can be changed, and that errors
// say so.
func assertReads(t *testing.T, a at, why string) {
	t.Helper()
	outside := t.TempDir()
	assertLayers(t, a)
	assert.Contains(t, a.ok(t, "tree"), "base\n└── mid\n    └── web\n")
	assert.Contains(t, a.ok(t, "status"), "Layers: ")
	assert.Contains(t, a.ok(t, "images"), "app:1")
	assert.Contains(t, a.ok(t, "usage", "mid"), "mid")
	assert.Equal(t, "A /mid\n", a.ok(t, "changes", "mid"), "of a sealed layer")
	assert.Equal(t, "A /web\n", a.ok(t, "changes", "web"), "of one that is not sealed")
	assert.Contains(t, a.ok(t, "diff", "mid"), "mid")
	a.ok(t, "export", "app:1", "oci-archive:"+filepath.Join(outside, "app.tar"))
	a.ok(t, "export", "web", "docker-archive:"+filepath.Join(outside, "web.tar")+":web:1")
	a.ok(t, "promote", "web", "oci-archive:"+filepath.Join(outside, "promoted.tar")+":web:1")
	assert.Contains(t, a.ok(t, "diff", "web", "--text"), "+web")

	target := filepath.Join(outside, "mnt")
	a.ok(t, "mount", "--read-only", "web", target)
	data, err := os.ReadFile(filepath.Join(target, "web"))
	assert.NoError(t, err)
	assert.Equal(t, "web", string(data))
	assert.ErrorIs(t, os.WriteFile(filepath.Join(target, "new"), nil, 0o644), unix.EROFS)
	a.ok(t, "unmount", target)
	require.NoError(t, os.Remove(target))

	write(t, filepath.Join(outside, "empty.tar"), strings.Repeat("\x00", 1024))
	image, _ := writeImage(t, "other:1", 1)
	for _, args := range [][]string{
		{"create", "new"}, {"create", "new", "--parent", "base"}, {"create", "new", "--parent", "web"},
		{"rm", "web"}, {"rmi", "app:1"}, {"import", image}, {"promote", "web", "new:1"}, {"limit", "web", "1G"},
		{"apply", "web", filepath.Join(outside, "empty.tar")}, {"mount", "web", target}, {"mount", "--read-only", "web"},
	} {
		r := a.run(t, args...)
		assert.Equal(t, exitPrecondition, r.code, "%v: %s", args, r.err)
		assert.Contains(t, r.err, "read-only", args)
		assert.Contains(t, r.err, "cowshed doctor", args)
		if args[0] == "create" {
			assert.Contains(t, r.err, why)
		}
	}
	assert.NoDirExists(t, target)
	assertLayers(t, a)
}

func assertLayers(t *testing.T, a at) {
	t.Helper()
	names := strings.Fields(a.ok(t, "ls", "--names"))
	for _, name := range []string{"base", "mid", "web"} {
		assert.Contains(t, names, name)
	}
}

func doctorFindings(t *testing.T, a at) []finding {
	t.Helper()
	var findings []finding
	r := a.run(t, "doctor", "--json")
	require.NoError(t, json.Unmarshal([]byte(r.out), &findings), r.err)
	return findings
}

// failures are the details and the advice of doctor's failures of a check.
func failures(findings []finding, check string) (details, advice string) {
	for _, f := range findings {
		if f.Check == check && f.Verdict == fail {
			details, advice = details+f.Detail+"\n", advice+f.Advice+"\n"
		}
	}
	return details, advice
}

func TestReadOnlyFilesystem(t *testing.T) {
	mnt := testfs.Btrfs(t)
	a := at{root: filepath.Join(mnt, "store")}
	a.ok(t, "init")
	makeLayersToRead(t, a)
	// As a crash leaves it: it cannot be cleaned up here.
	require.NoError(t, exec.Command("btrfs", "subvolume", "create", filepath.Join(a.root, "btrfs/staging/left~over")).Run())
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	assertReads(t, a, "mounted read-only")
	findings := doctorFindings(t, a)
	details, advice := failures(findings, "filesystem")
	assert.Contains(t, details, "it is mounted read-only")
	assert.Contains(t, advice, "remount,rw")
	for _, f := range findings {
		if f.Check != "filesystem" {
			assert.NotEqual(t, fail, f.Verdict, "%s: %s", f.Check, f.Detail)
		}
	}
	r := a.run(t, "init")
	assert.Equal(t, exitPrecondition, r.code, r.err)

	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, ""))
	a.ok(t, "create", "new", "--parent", "web")
	assert.NoDirExists(t, filepath.Join(a.root, "btrfs/staging/left~over"), "who can write cleans up")
}

// TestReadOnlyFilesystemZFS: a pool that was imported read-only is read like a filesystem that is mounted read-only.
func TestReadOnlyFilesystemZFS(t *testing.T) {
	pool, dir := testfs.OwnZpool(t, 128<<20, 256<<20)
	zfs := func(command string, args ...string) {
		t.Helper()
		out, err := outputOf(t, exec.Command(command, args...))
		require.NoError(t, err, out)
	}
	mnt := filepath.Join(t.TempDir(), "mnt")
	zfs("zfs", "create", "-o", "mountpoint="+mnt, pool+"/root")
	a := at{root: filepath.Join(mnt, "store")}
	a.ok(t, "init")
	makeLayersToRead(t, a)
	reimport := func(option string) {
		t.Helper()
		zfs("zpool", "export", pool)
		zfs("zpool", "import", "-d", dir, "-o", "cachefile=none", "-o", option, pool)
	}
	reimport("readonly=on")
	assertReads(t, a, "read-only")
	details, advice := failures(doctorFindings(t, a), "filesystem")
	assert.Contains(t, details, "read-only")
	assert.Contains(t, advice, "zpool import")
	assert.NotContains(t, advice, "remount,rw", "which ZFS refuses")
	assert.Equal(t, exitPrecondition, a.run(t, "init").code)
	reimport("readonly=off")
	a.ok(t, "create", "new", "--parent", "web")
	a.ok(t, "rm", "new")
}

// The store that moby's driver has made has no directories but subvolumes.
func TestReadOnlyStoreOfMoby(t *testing.T) {
	mnt := testfs.Btrfs(t)
	a := at{root: filepath.Join(mnt, "docker")}
	layers := filepath.Join(a.root, "btrfs/subvolumes")
	require.NoError(t, os.MkdirAll(layers, 0o755))
	require.NoError(t, exec.Command("btrfs", "subvolume", "create", filepath.Join(layers, "layer")).Run())
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	assert.Equal(t, "layer\n", a.ok(t, "ls", "--names"))
	assert.Empty(t, a.ok(t, "changes", "layer", "--whole"))
}

// The filesystem of an embedded store's image is full: the kernel aborts writes, and the store becomes read-only for
// good.
func TestAbortedFilesystem(t *testing.T) {
	testfs.Root(t)
	host := t.TempDir()
	require.NoError(t, unix.Mount("host", host, "tmpfs", 0, "size=80m"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(host, 0)) })
	a := at{root: filepath.Join(host, "store")}

	r := a.run(t, "init", "--loop", "300M")
	assert.Equal(t, exitPrecondition, r.code)
	assert.Contains(t, r.err, "--force")
	assert.Contains(t, r.err, "80MiB")
	assert.NoFileExists(t, a.root+".img")
	a.ok(t, "init", "--loop", "300M", "--force")
	t.Cleanup(func() { a.ok(t, "deinit", "--yes") })
	warned := false
	for _, f := range doctorFindings(t, a) {
		warned = warned || f.Check == "embedded store" && f.Verdict == warn && strings.Contains(f.Detail, "may still take")
	}
	assert.True(t, warned, "before it is full")

	makeLayersToRead(t, a)
	a.ok(t, "create", "greedy")
	abort(t, filepath.Join(a.root, "btrfs/subvolumes/greedy"))
	assertReads(t, a, "after an error")

	findings := doctorFindings(t, a)
	details, advice := failures(findings, "filesystem")
	assert.Contains(t, details, "after an error", "with the kernel's message, unless that was one of too many")
	assert.Contains(t, advice, "unmount")
	assert.NotContains(t, advice, "remount", "which the kernel refuses")
	details, _ = failures(findings, "embedded store")
	assert.Contains(t, details, "the filesystem of "+a.root+".img is full")
}

// abort writes to a directory until the kernel makes its filesystem read-only.
func abort(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "big"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Syncfs(int(f.Fd())))
	for range 200 {
		if _, err := f.Write(randomBytes(1 << 20)); err != nil {
			break
		}
	}
	for i := 0; ; i++ {
		_ = unix.Syncfs(int(f.Fd())) // which fails, and so the kernel gives up
		var stat unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &stat))
		if stat.Flags&unix.ST_RDONLY != 0 {
			return
		}
		require.Less(t, i, 100, "the kernel has not made it read-only")
		_, _ = f.WriteAt(randomBytes(4096), int64(i)*4096)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// On a full filesystem commands name the full filesystem and the way out, and removals work.
func TestFullFilesystem(t *testing.T) {
	testFull(t, testfs.Btrfs(t, testfs.WithSize(256<<20)))
}

// TestFullFilesystemZFS is TestFullFilesystem where a pool is full, and where the quota of the dataset that holds all is reached.
func TestFullFilesystemZFS(t *testing.T) {
	testfs.Zpool(t)
	for name, by := range testfs.Bounds() {
		t.Run(name, func(t *testing.T) {
			_, mnt := testfs.SmallZFS(t, 64<<20, by)
			testFull(t, mnt)
		})
	}
}

// testFull is TestFullFilesystem on one small filesystem.
func testFull(t *testing.T, mnt string) {
	a := at{root: filepath.Join(mnt, "store")}
	a.ok(t, "init")
	makeLayersToRead(t, a)
	image, _ := writeImage(t, "other:1", 1)
	before := a.state(t)
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)
	for _, args := range [][]string{{"create", "new"}, {"import", image}} {
		r := a.run(t, args...)
		assert.Equal(t, exitFull, r.code, "%v: %s", args, r.err)
		assert.Contains(t, r.err, "cowshed rm", args)
	}
	assert.Equal(t, before, a.state(t), "what fails leaves nothing")
	assert.Contains(t, a.ok(t, "changes", "mid"), "A /mid")
	for _, f := range doctorFindings(t, a) {
		assert.NotEqual(t, fail, f.Verdict, "%s: %s", f.Check, f.Detail)
	}
	a.ok(t, "rm", "web")
	a.ok(t, "rmi", "app:1")
	assert.Equal(t, "base\nmid\n", a.ok(t, "ls", "--names"))
}
