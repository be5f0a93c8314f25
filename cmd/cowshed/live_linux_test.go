package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/testfs"
)

// read reads a file in a mounted layer or snapshot.
func (a at) read(t *testing.T, layer, name string) (content string) {
	t.Helper()
	a.with(t, layer, func(dir string) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		content = string(data)
	})
	return content
}

func (a at) write(t *testing.T, layer, name, data string) {
	t.Helper()
	a.with(t, layer, func(dir string) { write(t, filepath.Join(dir, name), data) })
}

// newWeb makes a store with the layer web, made from the layer base.
func newWeb(t *testing.T) at {
	t.Helper()
	a := newStore(t)
	a.ok(t, "create", "base")
	a.ok(t, "create", "web", "--parent", "base", "--read-write")
	a.write(t, "web", "file", "1")
	return a
}

func TestForkCommand(t *testing.T) {
	a := newWeb(t)
	dir := strings.TrimSpace(a.ok(t, "mount", "web"))
	assert.Equal(t, "test\n", a.ok(t, "fork", "web", "test", "--size", "1G"))
	write(t, filepath.Join(dir, "file"), "2")
	assert.Equal(t, "1", a.read(t, "test", "file"))
	assert.Empty(t, a.ok(t, "changes", "test"))
	a.ok(t, "unmount", "web")

	pattern := filepath.Join(t.TempDir(), "try-%d")
	assert.Equal(t, "try-1\ntry-2\n", a.ok(t, "fork", "web", "try", "-n", "2", "--mount-at", pattern, "--label", "task=1"))
	for _, n := range []string{"1", "2"} {
		target := strings.ReplaceAll(pattern, "%d", n)
		write(t, filepath.Join(target, "new"), n)
		require.NoError(t, unix.Unmount(target, 0))
	}
	assert.Equal(t, "A /new\n", a.ok(t, "changes", "try-2"))
	write(t, strings.ReplaceAll(pattern, "%d", "file-2"), "")
	r := a.run(t, "fork", "web", "-n", "2", "--mount-at", strings.ReplaceAll(pattern, "%d", "file-%d"))
	assert.NotZero(t, r.code)
	require.Contains(t, r.err, "not all mounted")
	made := strings.Fields(r.out)
	require.Len(t, made, 2, "they are there")
	require.NoError(t, unix.Unmount(strings.ReplaceAll(pattern, "%d", "file-1"), 0))
	a.ok(t, append([]string{"rm"}, made...)...)

	var layers []api.Layer
	a.json(t, &layers, "ls")
	of := make(map[string]string)
	for _, l := range layers {
		of[l.Name] = l.ForkOf
		if l.Name == "test" {
			assert.EqualValues(t, 1<<30, l.Limit)
		}
	}
	assert.Equal(t, map[string]string{"base": "", "web": "", "test": "web", "try-1": "web", "try-2": "web"}, of)
	assert.Contains(t, a.ok(t, "tree"), "    └── try-2")

	for _, args := range [][]string{
		{"fork", "web", "test"}, {"fork", "none"}, {"fork", "web", "--count", "0"}, {"fork", "web", "--ttl", "-1s"},
		{"fork", "web", "-n", "2", "--mount-at", "/x"}, {"fork", "web", "x/y"}, {"fork", "web@none", "x"}, {"fork", "web", "x", "--size", "-1"},
	} {
		r := a.run(t, args...)
		assert.Contains(t, []int{exitUsage, exitNotFound, exitExists}, r.code, args)
	}
	a.ok(t, "snapshot", "test", "one")
	a.ok(t, "fork", "test@one", "of-snapshot")
	layers = nil
	a.json(t, &layers, "ls")
	i := slices.IndexFunc(layers, func(l api.Layer) bool { return l.Name == "of-snapshot" })
	assert.EqualValues(t, 1<<30, layers[i].Limit, "that of the snapshot's layer")

	a.ok(t, "fork", "web", "brief", "--ttl", "1ns")
	a.ok(t, "rm", "web", "test")
	assert.NotContains(t, a.ok(t, "ls"), "brief", "it has expired")
}

func TestAdoptCommand(t *testing.T) {
	a := newStore(t)
	dir := filepath.Join(filepath.Dir(a.root), "app")
	require.NoError(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "file"), "1")
	assert.Equal(t, "app\n", a.ok(t, "adopt", dir))
	var info adoptInfo
	a.json(t, &info, "adopt", dir, "limited", "--size", "1G")
	assert.Equal(t, adoptInfo{Name: "limited"}, info)
	assert.Equal(t, "1", a.read(t, "app", "file"))
	for code, args := range map[int][]string{
		exitExists: {"adopt", dir}, exitNotFound: {"adopt", dir + "/none", "x"}, exitUsage: {"adopt", filepath.Dir(a.root), "x"},
	} {
		assert.Equal(t, code, a.run(t, args...).code, args)
	}
}

// TestDeinitAfterSnapshots: the records of moments go with the store.
func TestDeinitAfterSnapshots(t *testing.T) {
	a := at{root: filepath.Join(testfs.Btrfs(t), "store")}
	a.ok(t, "init")
	a.ok(t, "create", "web")
	a.ok(t, "snapshot", "web")
	assert.Equal(t, exitPrecondition, a.run(t, "deinit", "--yes").code)
	a.ok(t, "rm", "web")
	a.ok(t, "deinit", "--yes")
	assert.NoDirExists(t, a.root)
}

func TestSnapshotCommand(t *testing.T) {
	a := newWeb(t)
	assert.Equal(t, "before\n", a.ok(t, "snapshot", "web", "before", "-m", "before the upgrade"))
	assert.Equal(t, exitExists, a.run(t, "snapshot", "web", "before").code)
	a.write(t, "web", "file", "2")
	a.write(t, "web", "new", "2")
	assert.Equal(t, "snapshot-1\n", a.ok(t, "snapshot", "web"))
	assert.Equal(t, "C /file\nA /new\n", a.ok(t, "changes", "web", "web@before"))
	assert.Equal(t, "A /file\n", a.ok(t, "changes", "web@before"), "since the layer's parent")
	assert.NotContains(t, a.ok(t, "ls", "--json"), "moment-")

	var infos []api.Snapshot
	a.json(t, &infos, "snapshot", "ls", "web")
	require.Len(t, infos, 2)
	assert.Equal(t, "before the upgrade", infos[0].Message)
	assert.Contains(t, a.ok(t, "snapshot", "ls", "web"), "before the upgrade")

	target := strings.TrimSpace(a.ok(t, "snapshot", "mount", "web", "before"))
	require.ErrorIs(t, os.WriteFile(filepath.Join(target, "file"), nil, 0o644), unix.EROFS)
	a.ok(t, "unmount", "web@before")

	t.Run("rollback", func(t *testing.T) {
		a.with(t, "web", func(dir string) {
			sleep := exec.Command("sleep", "1000")
			sleep.Dir = dir
			testfs.Start(t, sleep)
			r := a.run(t, "rollback", "web", "before")
			assert.Equal(t, exitPrecondition, r.code)
			assert.Contains(t, r.err, fmt.Sprintf("%s, in use by process %d (sleep); unmount it", dir, sleep.Process.Pid))
			require.NoError(t, sleep.Process.Kill())
			require.Error(t, testfs.Wait(t, sleep))
			assert.Equal(t, "before-rollback-1\n", a.ok(t, "rollback", "web", "before", "--live"))
			assert.NoFileExists(t, filepath.Join(dir, "new"))
		})
		assert.Equal(t, "before-rollback-2\n", a.ok(t, "rollback", "web", "before-rollback-1"))
		assert.Equal(t, "2", a.read(t, "web", "new"))
		assert.Equal(t, "A /file\nA /new\n", a.ok(t, "changes", "web"), "the parent stays")
		assert.Equal(t, exitNotFound, a.run(t, "rollback", "web", "none").code)
	})
	t.Run("log", func(t *testing.T) {
		a.ok(t, "fork", "web@before", "fork")
		a.ok(t, "fork", "fork", "of-fork")
		out := a.ok(t, "log", "web")
		for _, want := range []string{"@before  before the upgrade", "@before-rollback-1", "    fork\n", "        of-fork\n"} {
			assert.Contains(t, out, want)
		}
		var l api.Log
		a.json(t, &l, "log", "web")
		assert.Len(t, l.Moments, 5)
	})
	t.Run("completion", func(t *testing.T) {
		assert.Contains(t, a.ok(t, "__complete", "--root", a.root, "rollback", "web", ""), "before-rollback-1")
		assert.NotContains(t, a.ok(t, "__complete", "--root", a.root, "rm", ""), "moment-")
		assert.Contains(t, a.ok(t, "__complete", "--root", a.root, "changes", "web", "web@b"), "web@before-rollback-1\n")
	})
	var removed []string
	a.json(t, &removed, "snapshot", "rm", "web", "before", "snapshot-1")
	assert.Equal(t, []string{"before", "snapshot-1"}, removed)
	assert.Equal(t, exitNotFound, a.run(t, "snapshot", "rm", "web", "before").code)
	assert.Equal(t, exitUsage, a.run(t, "rm", "web@before-rollback-1").code)
	assert.Equal(t, exitUsage, a.run(t, "rm", infos[0].Volume).code)
	assert.Equal(t, exitUsage, a.run(t, "create", infos[0].Volume).code)
	removed = nil
	a.json(t, &removed, "rm", "web", "base", "fork", "of-fork")
	assert.ElementsMatch(t, []string{"web", "base", "fork", "of-fork"}, removed)
	entries, err := os.ReadDir(filepath.Join(a.root, "btrfs/subvolumes"))
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// TestCreateOfMoment: a layer that is made from a moment has it as its base, and not the name of the moment's layer, which is gone.
func TestCreateOfMoment(t *testing.T) {
	a := newWeb(t)
	a.ok(t, "fork", "web", "fork")
	moment := a.layer(t, "fork").Parent
	a.ok(t, "rm", "web")
	r := a.run(t, "create", "web", "--parent", moment)
	assert.Equal(t, exitUsage, r.code, r.err)
	assert.Contains(t, r.err, "former layer")
	a.ok(t, "create", "other", "--parent", moment)
	a.write(t, "other", "new", "1")
	assert.Equal(t, "A /new\n", a.ok(t, "changes", "other"))
	assert.Empty(t, a.ok(t, "changes", "fork"))
}

func TestMergeCommand(t *testing.T) {
	a := newWeb(t)
	a.ok(t, "fork", "web", "test")
	a.write(t, "test", "file", "2")
	a.write(t, "test", "new", "2")
	a.write(t, "web", "file", "3")
	r := a.run(t, "merge", "test")
	assert.Equal(t, exitConflict, r.code)
	assert.Equal(t, "CC /file\n", r.out)
	var info api.Merge
	a.json(t, &info, "merge", "test", "--force-path", "/file")
	assert.Equal(t, "before-merge-1", info.Before)
	assert.Equal(t, []api.Conflict{{Path: "/file", Fork: "C", Layer: "C"}}, info.Conflicts)
	assert.Equal(t, "2", a.read(t, "web", "file"))
	assert.Equal(t, "2", a.read(t, "web", "new"))
	assert.Empty(t, a.ok(t, "merge", "test"), "there is nothing more to apply")

	assert.Equal(t, exitUsage, a.run(t, "merge", "test", "--ours", "--theirs").code)
	assert.Equal(t, exitUsage, a.run(t, "merge", "test", "--force-path", "file").code)
	assert.Equal(t, exitNotFound, a.run(t, "merge", "web").code)
	a.with(t, "web", func(string) {
		a.write(t, "test", "new", "4")
		assert.Equal(t, exitPrecondition, a.run(t, "merge", "test", "--theirs").code)
		assert.Equal(t, "before-merge-2\n", a.ok(t, "merge", "test", "--theirs", "--live"))
	})
	assert.Equal(t, "4", a.read(t, "web", "new"))
}

// TestInterruptedRollback: a crash has left a layer without its name, as on ZFS. The next command finds the layer.
func TestInterruptedRollback(t *testing.T) {
	for _, args := range [][]string{{"ls"}, {"snapshot", "web", "again"}, {"fork", "web", "fork"}, {"rm", "web"}, {"create", "child", "--parent", "web"}} {
		t.Run(args[0], func(t *testing.T) {
			a := newWeb(t)
			a.ok(t, "snapshot", "web", "one")
			a.write(t, "web", "file", "2")
			var infos []api.Snapshot
			a.json(t, &infos, "snapshot", "ls", "web")
			moment := infos[0].Volume
			subvolumes := filepath.Join(a.root, "btrfs/subvolumes")
			former := moment[:len(moment)-12] + "aaaaaaaaaaaa"
			require.NoError(t, os.Rename(filepath.Join(subvolumes, "web"), filepath.Join(subvolumes, former)))
			out, err := exec.Command("btrfs", "subvolume", "snapshot", filepath.Join(subvolumes, moment), filepath.Join(subvolumes, former+".new")).CombinedOutput()
			require.NoError(t, err, "%s", out)
			write(t, filepath.Join(a.root, "live/btrfs/pending", former+".json"), fmt.Sprintf(
				`{"version": 1, "volume": %q, "layer": "web", "base": "base", "name": "before-rollback", "time": "2026-01-01T00:00:00Z", "replaced": "2026-01-01T00:00:00Z"}`, former))
			a.ok(t, args...)
			if args[0] == "rm" {
				assert.NoFileExists(t, filepath.Join(subvolumes, former))
				return
			}
			assert.Equal(t, "1", a.read(t, "web", "file"))
			if args[0] != "create" { // which seals the layer
				a.ok(t, "rollback", "web", "before-rollback-1")
				assert.Equal(t, "2", a.read(t, "web", "file"))
			}
		})
	}
}

// TestNameAgain: a new layer does not have the snapshots of a former one, also if others have kept rm from removing these.
func TestNameAgain(t *testing.T) {
	a := newWeb(t)
	a.ok(t, "snapshot", "web", "one")
	lock, err := os.Open(filepath.Join(a.root, "live/btrfs/.lock"))
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_SH))
	a.ok(t, "rm", "web")
	a.ok(t, "create", "web")
	assert.Equal(t, exitNotFound, a.run(t, "rollback", "web", "one").code)
	a.ok(t, "snapshot", "web", "one")
	var infos []api.Snapshot
	a.json(t, &infos, "snapshot", "ls", "web")
	assert.Len(t, infos, 1)
}

// TestExpiredFork: each command that lists or removes layers, images or snapshots removes expired forks first.
func TestExpiredFork(t *testing.T) {
	a := newWeb(t)
	for _, args := range [][]string{{"ls"}, {"snapshot", "ls", "web"}, {"log", "web"}, {"rmi", "none"}, {"rm", "other"}} {
		a.ok(t, "create", "other")
		a.ok(t, "fork", "web", "brief", "--ttl", "1ns")
		r := a.run(t, args...)
		assert.NotContains(t, r.out, "brief")
		assert.NoDirExists(t, filepath.Join(a.root, "btrfs/subvolumes/brief"), args)
		a.run(t, "rm", "other")
	}
	a.ok(t, "fork", "web", "fork", "--label", "task=1")
	a.ok(t, "snapshot", "fork", "one")
	a.ok(t, "rollback", "fork", "one")
	assert.Contains(t, a.ok(t, "log", "web", "--json"), `"task": "1"`)
}

// TestDiffText compares layer, snapshot, fork and parent.
func TestDiffText(t *testing.T) {
	a := newWeb(t)
	a.ok(t, "snapshot", "web", "one")
	a.write(t, "web", "file", "2\n")
	a.ok(t, "fork", "web", "fork")
	a.write(t, "fork", "file", "3\n")
	a.write(t, "fork", "\x1b[2J", "\x1b[2J")
	const head = "diff a/file b/file\n--- a/file\n+++ b/file\n@@ -1,1 +1,1 @@\n"
	const noNewline = "\n\\ No newline at end of file\n"
	assert.Equal(t, head+"-1"+noNewline+"+2\n", a.ok(t, "diff", "web", "web@one", "--text"))
	assert.Contains(t, a.ok(t, "diff", "web", "--text"), "--- /dev/null\n+++ b/file\n@@ -0,0 +1,1 @@\n+2\n")
	assert.Contains(t, a.ok(t, "diff", "web@one", "--text"), "+1"+noNewline)
	out := a.ok(t, "diff", "fork", "--text")
	assert.Contains(t, out, head+"-2\n+3\n")
	assert.Contains(t, out, `+++ "b/\x1b[2J"`)
	assert.NotContains(t, out, "\x1b")
	assert.Contains(t, a.ok(t, "diff", "web@one", "fork", "--text"), head+"-3\n+1"+noNewline)
	path := filepath.Join(t.TempDir(), "text")
	a.ok(t, "diff", "fork", "--text", "-o", path)
	written, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, out, string(written))
	assert.Equal(t, exitUsage, a.run(t, "diff", "fork", "--text", "--compress", "gzip").code)
}

// TestDoctorMoments: doctor finds moments and forks that do not fit together, and says how to go on.
func TestDoctorMoments(t *testing.T) {
	a := newWeb(t)
	a.ok(t, "snapshot", "web", "one")
	assert.Contains(t, a.ok(t, "doctor"), "records of snapshots and forks agree with the volumes")
	var infos []api.Snapshot
	a.json(t, &infos, "snapshot", "ls", "web")
	a.ok(t, "fork", "web", "brief", "--ttl", "1ns")
	out := a.ok(t, "doctor")
	assert.Contains(t, out, "fork brief of layer web has expired")
	assert.Contains(t, out, "the next cowshed ls removes it")
	record := filepath.Join(a.root, "live/btrfs/moments", infos[0].Volume+".json")
	write(t, record, "{")
	r := a.run(t, "doctor")
	assert.Equal(t, exitFailure, r.code)
	assert.Contains(t, r.out, "delete the record "+record)
	require.NoError(t, os.Remove(record))
	assert.Contains(t, a.ok(t, "doctor"), "has the name of a moment, and no record")
}

// TestSnapshotHooks: a snapshot is taken between two commands, or not at all if the first fails.
func TestSnapshotHooks(t *testing.T) {
	a := newWeb(t)
	said := filepath.Join(t.TempDir(), "said")
	say := func(text string) string { return fmt.Sprintf("echo %s >>%s", text, said) }
	words := func() string {
		text, err := os.ReadFile(said)
		require.NoError(t, err)
		require.NoError(t, os.Remove(said))
		return string(text)
	}
	assert.Equal(t, "one\n", a.ok(t, "snapshot", "web", "one", "--pre", say("$COWSHED_HOOK $COWSHED_REFERENCE"), "--post", say("post")))
	assert.Equal(t, "pre web\npost\n", words())

	r := a.run(t, "snapshot", "web", "two", "--pre", "echo why; exit 3", "--post", say("post"))
	assert.Equal(t, exitFailure, r.code)
	assert.Contains(t, r.err, "there is no snapshot")
	assert.Contains(t, r.err, "why")
	assert.Equal(t, "post\n", words())
	r = a.run(t, "snapshot", "web", "two", "--pre", "sleep 1000", "--hook-timeout", "10ms")
	assert.Equal(t, exitFailure, r.code)
	r = a.run(t, "snapshot", "web", "two", "--post", "exit 3")
	assert.Equal(t, exitFailure, r.code)
	assert.Equal(t, "two\n", r.out, "it is there")
	assert.Equal(t, exitUsage, a.run(t, "snapshot", "web", "--pre", "true", "--hook-timeout", "0").code)

	hook := filepath.Join(a.root, "live/btrfs/hooks/hook-aaaaaaaaaaaa.json")
	write(t, hook, fmt.Sprintf(`{"version":1,"layer":"web","post":%q,"timeout":1000000000}`, say("left")))
	require.NoError(t, os.Chmod(hook, 0o600))
	r = a.run(t, "doctor")
	assert.Equal(t, exitFailure, r.code)
	assert.Contains(t, r.out, "the post command of a snapshot of layer web was not run")
	a.ok(t, "snapshot", "web", "--post", say("post"))
	assert.Equal(t, "left\npost\n", words())
}
