package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// containersHost is a daemon with a container of two files, one of which is its image's, and the command beside it.
type containersHost struct {
	*served
	t      *testing.T
	style  string // root style of the container
	config string
	web    string // where the container is mounted while it runs
}

const (
	webKey = "test/3/web"
	web    = "containerd:test/web"
)

func newContainersHost(t *testing.T, style string) *containersHost {
	t.Helper()
	testfs.CheckLeaks(t)
	h := &containersHost{served: newServed(t), t: t, style: style, web: t.TempDir()}
	h.config = filepath.Join(h.dir, "config.toml")
	require.NoError(t, os.WriteFile(h.config, fmt.Appendf(nil, "root = %q\nstate = %q\naddress = %q\n", h.root, h.dir, h.socket), 0o600))
	h.serve()
	s, ctx := h.snapshotter()
	_, err := s.Prepare(ctx, "test/1/layer", "")
	require.NoError(t, err)
	h.run("test/1/layer", func(dir string) { write(t, filepath.Join(dir, "base"), "base") })
	require.NoError(t, s.Commit(ctx, "test/2/image", "test/1/layer"))
	_, err = s.Prepare(ctx, webKey, "test/2/image")
	require.NoError(t, err)
	h.run(webKey, func(dir string) { write(t, filepath.Join(dir, "file"), "1") })
	return h
}

// serve starts the daemon.
func (h *containersHost) serve() {
	h.t.Helper()
	h.start(h.command("--root-style", h.style))
}

// eachRootStyle runs a test with a container of each root style.
func eachRootStyle(t *testing.T, test func(t *testing.T, h *containersHost)) {
	for _, style := range []cowcommon.RootStyle{cowcommon.SnapshotRoot, cowcommon.SharedRoot} {
		t.Run(string(style), func(t *testing.T) { test(t, newContainersHost(t, string(style))) })
	}
}

// run does something while a snapshot is mounted, as a container runs in it.
func (h *containersHost) run(key string, do func(dir string)) {
	h.t.Helper()
	s, ctx := h.snapshotter()
	mounts, err := s.Mounts(ctx, key)
	require.NoError(h.t, err)
	require.NoError(h.t, mount.All(mounts, h.web))
	defer func() { require.NoError(h.t, mount.UnmountAll(h.web, 0)) }()
	if key == webKey {
		assert.Equal(h.t, h.style == string(cowcommon.SharedRoot), isOverlay(h.t, h.web))
	}
	do(h.web)
}

func (h *containersHost) file(name string) (content string) {
	h.t.Helper()
	h.run(webKey, func(dir string) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(h.t, err)
		content = string(data)
	})
	return content
}

func (h *containersHost) cowshed(args ...string) string {
	h.t.Helper()
	return at{root: h.root}.ok(h.t, append(args, "--config", h.config)...)
}

func (h *containersHost) fails(code int, says string, args ...string) {
	h.t.Helper()
	r := at{root: h.root}.run(h.t, append(args, "--config", h.config)...)
	assert.Equal(h.t, code, r.code, "%v: %s", args, r.err)
	assert.Contains(h.t, r.err, says, args)
}

// volumes lists the daemon's volumes.
func (h *containersHost) volumes() (names []string) {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.root, "containerd/btrfs/subvolumes"))
	require.NoError(h.t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (h *containersHost) restart() {
	h.t.Helper()
	h.kill()
	h.serve()
}

// TestContainerLayers: a container that runs is compared, forked, snapshotted and mounted by its reference, whether the daemon runs
// or not.
func TestContainerLayers(t *testing.T) { eachRootStyle(t, testContainerLayers) }

func testContainerLayers(t *testing.T, h *containersHost) {
	h.run(webKey, func(dir string) {
		assert.Equal(t, "A /file\n", h.cowshed("changes", web))
		assert.Equal(t, "fork:try\n", h.cowshed("fork", web, "try"))
		assert.Equal(t, "before\n", h.cowshed("snapshot", web, "before"))
		write(t, filepath.Join(dir, "new"), "2")
		assert.Equal(t, "A /new\n", h.cowshed("changes", web, web+"@before"))
		assert.Empty(t, h.cowshed("changes", "fork:try"))
		assert.Contains(t, h.cowshed("usage", web, "fork:try"), web)
		tar := filepath.Join(t.TempDir(), "web.tar")
		h.cowshed("diff", web, "-o", tar)
		assert.FileExists(t, tar)

		layout := filepath.Join(t.TempDir(), "layout")
		h.cowshed("export", web, "oci:"+layout+":web:1")
		assert.FileExists(t, filepath.Join(layout, "index.json"))

		shown := strings.TrimSpace(h.cowshed("mount", web))
		require.Error(t, os.WriteFile(filepath.Join(shown, "new"), nil, 0o600), "a container is mounted read-only")
		data, err := os.ReadFile(filepath.Join(shown, "new"))
		require.NoError(t, err)
		assert.Equal(t, "2", string(data))
		h.cowshed("unmount", web)
		assert.FileExists(t, filepath.Join(dir, "new"), "the container's own mount stays")
		assert.NoDirExists(t, shown)
		h.fails(exitNotFound, "is not mounted", "unmount", web)
	})
	shown := ""
	h.run(webKey, func(string) { shown = strings.TrimSpace(h.cowshed("mount", web)) })
	h.run(webKey, func(dir string) { // the container has started again, and its root may be another overlay
		h.cowshed("unmount", web)
		assert.NoDirExists(t, shown)
		assert.FileExists(t, filepath.Join(dir, "new"))
	})
	shown = strings.TrimSpace(h.cowshed("snapshot", "mount", web, "before"))
	assert.NoFileExists(t, filepath.Join(shown, "new"))
	h.cowshed("unmount", web+"@before")
	shown = strings.TrimSpace(h.cowshed("mount", "fork:try"))
	write(t, filepath.Join(shown, "of-fork"), "3")
	h.cowshed("unmount", "fork:try")
	assert.Equal(t, "A /of-fork\n", h.cowshed("changes", "fork:try"))
	h.cowshed("limit", "fork:try", "8M")
	assert.Contains(t, h.cowshed("usage", "fork:try"), "8MiB")
	assert.Contains(t, h.cowshed("log", web), "fork:try")
	assert.Contains(t, h.cowshed("snapshot", "ls", web), "before")
	assert.Equal(t, "fork:try\n", h.cowshed("ls", "--forks", "--names"))

	h.stop()
	assert.Equal(t, "A /new\n", h.cowshed("changes", web, web+"@before"))
	assert.Equal(t, "fork:late\n", h.cowshed("fork", web+"@before", "fork:late"))
	assert.Equal(t, "before\n", h.cowshed("snapshot", "rm", web, "before"))
	h.serve()
	assert.Equal(t, "fork:late\nfork:try\n", h.cowshed("ls", "--forks", "--names"))

	at{root: h.root}.ok(t, "init", "--driver", "btrfs")
	at{root: h.root}.ok(t, "create", "layer")
	for _, test := range []struct {
		code int
		says string
		args []string
	}{
		{exitUsage, "do not go together", []string{"changes", web, "layer"}},
		{exitUsage, "do not go together", []string{"merge", "fork:try", "--into", "layer"}},
		{exitNotFound, "there is no such snapshot", []string{"fork", "containerd:test/none"}},
		{exitNotFound, "there is no such snapshot", []string{"fork", "containerd:other/web"}},
		{exitUsage, "say containerd:NAMESPACE/KEY", []string{"fork", "containerd:web"}},
		{exitNotFound, "no snapshot none", []string{"changes", web + "@none"}},
		{exitNotFound, "", []string{"changes", "fork:none"}},
		{exitExists, "try", []string{"fork", web, "try"}},
		{exitUsage, "of the form", []string{"fork", web, "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ.x"}},
		{exitPrecondition, "by its engine", []string{"rm", web}},
		{exitUsage, "leave out " + h.web, []string{"mount", web, h.web}},
		{exitFailure, "no such file", []string{"fork", "docker:web"}},
		{exitFailure, "containerd", []string{"promote", web, "web:1"}},
		{exitFailure, "containerd", []string{"promote", "fork:try", "oci:" + t.TempDir() + ":web"}},
		{exitFailure, "containerd", []string{"fork", "cri:web"}},
	} {
		h.fails(test.code, test.says, test.args...)
	}
	h.stop()

	// Docker's own image has the form of a reference.
	layout := filepath.Join(t.TempDir(), "layout")
	h.cowshed("export", web, "oci:"+layout+":docker:27")
	at{root: h.root}.ok(t, "import", "oci:"+layout+":docker:27", "--name", "docker:27")
	assert.Contains(t, h.cowshed("changes", "docker:27", "--whole"), "A /file\n")
	h.fails(exitFailure, "no such file", "changes", "docker:28")
}

// TestContainerRollback: a container that is stopped goes back to a snapshot, and gets the changes of a fork, behind its key. A
// container that runs is refused.
func TestContainerRollback(t *testing.T) { eachRootStyle(t, testContainerRollback) }

func testContainerRollback(t *testing.T, h *containersHost) {
	h.cowshed("snapshot", web, "before")
	h.cowshed("fork", web, "try")
	h.run(webKey, func(dir string) {
		write(t, filepath.Join(dir, "file"), "2")
		h.fails(exitPrecondition, "containerd:test/web is mounted on "+dir+"; stop the container first", "rollback", web, "before")
		h.fails(exitPrecondition, "stop the container first", "merge", "fork:try")
		h.cowshed("rollback", web, "before", "--live")
	})
	assert.Equal(t, "1", h.file("file"))
	h.run(webKey, func(dir string) { write(t, filepath.Join(dir, "file"), "3") })
	assert.Equal(t, "before-rollback-2\n", h.cowshed("rollback", web, "before"))
	assert.Equal(t, "1", h.file("file"))
	assert.Equal(t, "C /file\n", h.cowshed("changes", web, web+"@before-rollback-2"))
	assert.Equal(t, "A /file\n", h.cowshed("changes", web), "its changes count from the image")

	h.restart()
	assert.Equal(t, "1", h.file("file"), "also after a restart")
	shown := strings.TrimSpace(h.cowshed("mount", "fork:try"))
	write(t, filepath.Join(shown, "merged"), "4")
	h.cowshed("unmount", "fork:try")
	h.cowshed("merge", "fork:try")
	assert.Equal(t, "4", h.file("merged"))
	assert.Equal(t, "base", h.file("base"))

	s, ctx := h.snapshotter()
	require.NoError(t, s.Commit(ctx, "test/4/committed", webKey))
	h.fails(exitPrecondition, "", "rollback", "containerd:test/committed", "before")
	h.removeAll(ctx, s, "test/4/committed")
	h.stop()
	assert.NotContains(t, h.log.String(), "is not the snapshotter's")
}

// removeAll removes a container and the image, after which only its fork is left.
func (h *containersHost) removeAll(ctx context.Context, s snapshots.Snapshotter, key string) {
	h.t.Helper()
	require.NoError(h.t, s.Remove(ctx, key))
	require.NoError(h.t, s.Remove(ctx, "test/2/image"))
	require.NoError(h.t, s.(snapshots.Cleaner).Cleanup(ctx))
	left := slices.DeleteFunc(h.volumes(), live.IsMoment)
	assert.Contains(h.t, left, "try")
	if h.style == string(cowcommon.SharedRoot) {
		assert.Len(h.t, left, 2, "it shares the image")
	} else {
		assert.Len(h.t, left, 1, "and the moments that it comes from")
	}
	assert.Contains(h.t, h.cowshed("changes", "fork:try"), "A /merged")
	h.restart()
	assert.Equal(h.t, "fork:try\n", h.cowshed("ls", "--forks", "--names"))
	assert.Equal(h.t, "[]\n", h.cowshed("lost", "ls", "--json"), "nothing is lost")
	assert.Equal(h.t, "fork:try\n", h.cowshed("rm", "fork:try"))
	s, ctx = h.snapshotter()
	require.NoError(h.t, s.(snapshots.Cleaner).Cleanup(ctx))
	assert.Empty(h.t, h.volumes())
}

// TestContainerExport: the layers of a fork or of a container that was rolled back hold nothing that the container got later or
// lost by that. Their volumes were made from the container's.
func TestContainerExport(t *testing.T) { eachRootStyle(t, testContainerExport) }

func testContainerExport(t *testing.T, h *containersHost) {
	h.cowshed("fork", web, "try")
	h.cowshed("snapshot", web, "before")
	h.run(webKey, func(dir string) { write(t, filepath.Join(dir, "secret"), "never shown") })
	check := func(name string) {
		t.Helper()
		layout := filepath.Join(t.TempDir(), "layout")
		h.cowshed("export", name, "oci:"+layout+":web:1", "--compress", "none")
		var all strings.Builder
		require.NoError(t, filepath.WalkDir(layout, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			all.Write(data)
			return err
		}))
		assert.Contains(t, all.String(), "base", name)
		assert.NotContains(t, all.String(), "secret", name)
		assert.NotContains(t, all.String(), "never shown", name)
	}
	check("fork:try")
	h.cowshed("rollback", web, "before")
	check(web)
	check("fork:try")
	h.stop()
}

// TestDoctorMomentsOfContainers: doctor looks at the records of containers' snapshots and forks, beside the daemon.
func TestDoctorMomentsOfContainers(t *testing.T) {
	h := newContainersHost(t, "snapshot")
	a := at{root: h.root}
	doctor := func() string { return a.run(t, "doctor", "--containerd", "--config", h.config).out }
	assert.NotContains(t, doctor(), "moments:", "there are none yet")
	h.cowshed("snapshot", web, "one")
	assert.Contains(t, doctor(), "ok    moments: records of snapshots and forks agree with the volumes")
	h.cowshed("fork", web, "try")
	h.cowshed("snapshot", "fork:try", "two")
	for begun, want := range map[string]string{"f": "fork:try\n", "fork:try@": "fork:try@two\n", web + "@": web + "@one\n"} {
		assert.Contains(t, a.ok(t, "__complete", "--root", a.root, "changes", "--config", h.config, begun), want)
	}
	assert.Contains(t, a.ok(t, "__complete", "--root", a.root, "rollback", "--config", h.config, "fork:try", ""), "two\n")
	h.cowshed("rm", "fork:try")
	records, err := filepath.Glob(filepath.Join(h.root, "containerd/live/btrfs/moments/*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, records)
	require.NoError(t, os.WriteFile(records[0], []byte("{"), 0o600))
	assert.Regexp(t, `fail  moments: record of a moment .*\n +restore the record`, doctor())
	h.stop()
}
