package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/testfs"
)

// newAppWeb makes a store with the image app:1 and the layer web, made from it.
func newAppWeb(t *testing.T) at {
	t.Helper()
	a := newStore(t)
	path, _ := writeImage(t, "app:1", 2)
	a.ok(t, "import", path, "--name", "app:1")
	a.ok(t, "create", "web", "--parent", "app:1", "--read-write")
	a.write(t, "web", "file", "1")
	return a
}

// assertNoMoments asserts that no moment is left without a snapshot or fork.
func (a at) assertNoMoments(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"moments", "pending"} {
		entries, err := os.ReadDir(filepath.Join(a.root, "live/btrfs", dir))
		if !os.IsNotExist(err) {
			require.NoError(t, err)
		}
		assert.Empty(t, entries)
	}
}

func TestPromoteCommand(t *testing.T) {
	a := newAppWeb(t)
	a.with(t, "web", func(dir string) {
		assert.Equal(t, "web:1\n", a.ok(t, "promote", "web", "web:1", "-m", "why"))
		write(t, filepath.Join(dir, "file"), "2")
	})
	a.assertNoMoments(t)
	assert.Equal(t, "1", a.read(t, "web:1", "file"))
	assert.Equal(t, "A /file\n", a.ok(t, "changes", "web:1"))
	a.ok(t, "create", "child", "--parent", "web:1")
	assert.Equal(t, "1", a.read(t, "child", "file"))
	layout := filepath.Join(t.TempDir(), "layout")
	a.ok(t, "export", "web:1", "oci:"+layout+":web", "--exact")

	a.ok(t, "snapshot", "web", "before")
	a.ok(t, "fork", "web", "fork")
	a.write(t, "fork", "fork", "3")
	a.ok(t, "fork", "fork", "of-fork")
	a.ok(t, "rollback", "web", "before")
	diffIDs := make(map[string]string)
	for _, of := range []string{"web", "web@before", "fork", "of-fork"} {
		var info struct{ imageInfo }
		a.json(t, &info, "promote", of, "promoted:"+strings.ReplaceAll(of, "@", "-"))
		require.Len(t, info.DiffIDs, 3, of)
		diffIDs[of] = info.DiffIDs[2].String()
		to := "oci:" + layout + ":" + strings.ReplaceAll(of, "@", "-")
		var exported struct{ DiffIDs []string }
		a.json(t, &exported, "promote", of, to)
		assert.Equal(t, diffIDs[of], exported.DiffIDs[2])
	}
	assert.Equal(t, diffIDs["web"], diffIDs["web@before"], "the same content")
	assert.Equal(t, diffIDs["fork"], diffIDs["of-fork"], "the same content")
	assert.Equal(t, "2", a.read(t, "promoted:fork", "file"))
	assert.Equal(t, "3", a.read(t, "promoted:fork", "fork"))

	before := a.state(t)
	for _, c := range []struct {
		code int
		args []string
	}{
		{exitExists, []string{"fork", "web:1"}}, {exitUsage, []string{"app:1", "x:1"}}, {exitNotFound, []string{"none", "x:1"}},
		{exitUsage, []string{"web", "docker://X"}}, {exitUsage, []string{"web", "-"}}, {exitNotFound, []string{"web@none", "x:1"}},
	} {
		r := a.run(t, append([]string{"promote"}, c.args...)...)
		assert.Equal(t, c.code, r.code, "%v: %s", c.args, r.err)
	}
	assert.Equal(t, before, a.state(t))
	a.ok(t, "rm", "child")
	a.ok(t, "promote", "fork", "web:1", "--force")

	a.ok(t, "rm", "fork", "web", "of-fork")
	a.ok(t, "rmi", "app:1", "promoted:web", "promoted:fork", "web:1")
	a.ok(t, "rmi", "promoted:of-fork", "promoted:web-before")
	entries, err := os.ReadDir(filepath.Join(a.root, "btrfs/subvolumes"))
	require.NoError(t, err)
	assert.Empty(t, entries)
	a.assertNoMoments(t)
}

// TestExportFork: an exported fork has a layer for the moment of the fork, and nothing of its origin since.
func TestExportFork(t *testing.T) {
	a := newAppWeb(t)
	a.ok(t, "fork", "web", "fork")
	a.write(t, "web", "since", "2")
	a.write(t, "fork", "fork", "3")
	var exported struct{ DiffIDs []string }
	layout := filepath.Join(t.TempDir(), "layout")
	a.json(t, &exported, "export", "fork", "oci:"+layout+":fork")
	assert.Len(t, exported.DiffIDs, 4)
	a.ok(t, "import", "oci:"+layout, "--name", "fork:1")
	assert.Empty(t, a.ok(t, "changes", "fork:1", "fork", "--walk"))
}

// TestPromoteStopped: a killed promotion leaves a layer that the next promotion removes. A signal to end leaves nothing.
func TestPromoteStopped(t *testing.T) {
	a := newAppWeb(t)
	a.with(t, "web", func(dir string) {
		for i := range 3000 {
			write(t, filepath.Join(dir, fmt.Sprint(i)), strings.Repeat("x", 5000))
		}
	})
	before := a.state(t)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		said := a.stopPromotion(t, signal)
		assert.NotContains(t, a.ok(t, "images"), "web:1")
		if signal == syscall.SIGTERM {
			a.assertNoMoments(t)
			assert.Equal(t, before, a.state(t), said)
		}
	}
	assert.Contains(t, a.ok(t, "ls", "--names"), "rootfs-partial-")
	a.assertNoMoments(t)
	a.ok(t, "promote", "web", "web:1")
	a.assertNoMoments(t)
	a.ok(t, "rmi", "web:1")
	assert.Equal(t, before, a.state(t))
}

// stopPromotion sends a signal to a promotion of web that has begun. If the promotion has ended first, it is taken back, and another
// one is begun.
func (a at) stopPromotion(t *testing.T, signal syscall.Signal) (said string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	for range 20 {
		cmd := exec.Command(self, "--root", a.root, "promote", "web", "web:1")
		cmd.Env = append(os.Environ(), asProgramEnv+"=1")
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		testfs.Start(t, cmd)
		require.Eventually(t, func() bool {
			entries, err := os.ReadDir(filepath.Join(a.root, "btrfs/subvolumes"))
			begun := err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return image.IsPartial(e.Name()) })
			return begun || testfs.Ended(t, cmd)
		}, testfs.Patience, time.Millisecond)
		require.NoError(t, cmd.Process.Signal(signal))
		if testfs.Wait(t, cmd) != nil {
			return errOut.String()
		}
		a.ok(t, "rmi", "web:1")
	}
	require.FailNow(t, "each promotion ends before its signal")
	return ""
}

// TestPromoteKilled kills promotions at different times. The image is listed if it is complete, and else nothing is left of it.
func TestPromoteKilled(t *testing.T) {
	a := newAppWeb(t)
	layout := filepath.Join(t.TempDir(), "layout")
	a.ok(t, "export", "app:1", "oci:"+layout+":app")
	before := a.ok(t, "ls", "--json")
	self, err := os.Executable()
	require.NoError(t, err)
	for i := range 20 {
		to := "web:1"
		if i%2 == 1 {
			to = "oci:" + layout + ":web"
		}
		cmd := exec.Command(self, "--root", a.root, "promote", "web", to)
		cmd.Env = append(os.Environ(), asProgramEnv+"=1")
		testfs.Start(t, cmd)
		time.Sleep(time.Duration(i) * 8 * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_ = testfs.Wait(t, cmd) // it was killed, or had ended
		a.ok(t, "import", "oci:"+layout+":app", "--name", "app:1")
		if strings.Contains(a.ok(t, "images"), "web:1") {
			a.ok(t, "export", "web:1", "oci-archive:"+filepath.Join(t.TempDir(), "web.tar"), "--exact")
			a.ok(t, "rmi", "web:1")
		}
		for _, name := range strings.Fields(a.ok(t, "ls", "--names")) { // a layer without its image, which doctor reports
			if image.IsLayerName(name) && !strings.Contains(before, name) {
				assert.Contains(t, a.ok(t, "doctor"), "was imported, and no image has it")
				a.ok(t, "rm", name)
			}
		}
		assert.Equal(t, before, a.ok(t, "ls", "--json"))
		a.assertNoMoments(t)
	}
	a.ok(t, "promote", "web", "oci:"+layout+":web")
	a.ok(t, "import", "oci:"+layout+":web", "--name", "web:1")
}
