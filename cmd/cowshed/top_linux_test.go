package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/containername"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// syncAll makes a filesystem count its data.
func syncAll(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Syncfs(int(f.Fd())))
}

// TestTop: layers of the store and containers of a daemon that runs are listed together, the fullest first.
func TestTop(t *testing.T) {
	testfs.CheckLeaks(t)
	d := newServed(t)
	d.start(d.command("--default-limit", "16M"))
	s, ctx := d.snapshotter()
	mounts, err := s.Prepare(ctx, "k8s.io/3/web", "")
	require.NoError(t, err)
	for _, key := range []string{"moby/4/1234", "k8s.io/5/extract-1 sha256:ab"} {
		_, err = s.Prepare(ctx, key, "")
		require.NoError(t, err)
	}
	dir := t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "much"), make([]byte, 12<<20), 0o644))
	require.NoError(t, mount.UnmountAll(dir, 0))

	config := filepath.Join(d.dir, "config.toml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "root = %q\ncontainerd_address = %q\n", d.root, filepath.Join(d.dir, "none.sock")), 0o600))
	a := at{root: d.root}
	top := func(args ...string) (rows []topRow) {
		a.json(t, &rows, append([]string{"top", "--config", config}, args...)...)
		return rows
	}
	syncAll(t, d.root)
	rows := top("--interval", "0")
	require.Len(t, rows, 2, "there is no store yet")
	a.ok(t, "init")
	a.ok(t, "create", "layer", "--size", "32M", "--read-write")
	a.ok(t, "create", "free", "--read-write")
	a.with(t, "layer", func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "some"), make([]byte, 16<<20), 0o644))
	})
	syncAll(t, d.root)
	rows = top("--interval", "0")
	require.Len(t, rows, 3)
	assert.Equal(t, []string{"snapshots", "store", "snapshots"}, []string{rows[0].Service, rows[1].Service, rows[2].Service})
	assert.Equal(t, "web", rows[0].ID)
	assert.Equal(t, "k8s.io", rows[0].Namespace)
	assert.InDelta(t, 75, rows[0].Percent, 1)
	assert.InDelta(t, 12<<20, rows[0].Held, 1<<20)
	assert.Equal(t, uint64(16<<20), rows[0].Limit)
	assert.Nil(t, rows[0].Growth)
	if rows := top("--interval", "50ms"); assert.NotNil(t, rows[0].Growth) {
		assert.Zero(t, *rows[0].Growth)
	}
	text := a.ok(t, "top", "--config", config, "--once", "--interval", "50ms")
	assert.Regexp(t, `^HELD +LIMIT +FULL +GROWTH +NAME
12\.\d*MiB +16MiB +75% +0B/s +containerd:k8s\.io/web
16\.\d*MiB +32MiB +50% +0B/s +layer
\S+ +16MiB +0% +0B/s +containerd:moby/1234
$`, text)
	d.stop()
	assert.Equal(t, rows, top("--interval", "0"), "the daemon need not run")

	assert.Equal(t, exitNotFound, at{root: t.TempDir()}.run(t, "top", "--config", config).code)
	assert.Equal(t, exitUsage, a.run(t, "top", "--interval", "-1s").code)
}

// terminal opens a terminal of 10 lines.
func terminal(t *testing.T) (screen, tty *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, screen.Close()) })
	require.NoError(t, unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.SetNonblock(int(screen.Fd()), true)) // Fd has undone it
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 10, Col: 80}))
	return screen, tty
}

// TestTopInTerminal: the list is shown again and again until Ctrl-C, in as many lines as there are, and the screen is left as
// it was.
func TestTopInTerminal(t *testing.T) {
	testfs.CheckLeaks(t)
	a := newStore(t)
	for i := range 9 {
		a.ok(t, "create", fmt.Sprint("layer", i), "--size", "16M", "--read-write")
	}
	screen, tty := terminal(t)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "--root", a.root, "top", "--interval", "1s")
	cmd.Env = append(os.Environ(), asProgramEnv+"=1")
	cmd.Stdout = tty
	var log bytes.Buffer
	cmd.Stderr = &log
	testfs.Start(t, cmd)
	require.NoError(t, tty.Close())
	var shown strings.Builder
	read := func() {
		require.NoError(t, screen.SetReadDeadline(time.Now().Add(testfs.Patience)))
		part := make([]byte, 4096)
		n, err := screen.Read(part)
		require.NoError(t, err, shown.String())
		shown.Write(part[:n])
	}
	for strings.Count(shown.String(), clearBelow) < 2 {
		read()
	}
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	for !strings.Contains(shown.String(), leaveScreen) { // and it does not wait for room in the terminal
		read()
	}
	require.NoError(t, testfs.Wait(t, cmd), log.String())
	screens := strings.Split(strings.TrimPrefix(shown.String(), enterScreen), homeCursor)
	require.GreaterOrEqual(t, len(screens), 3)
	for i, text := range screens[1:3] {
		assert.Contains(t, text, "9 with a limit")
		assert.Equal(t, 9, strings.Count(text, "\n"), text)
		assert.Equal(t, 6, strings.Count(text, "layer"), text)
		assert.Equal(t, i == 1, strings.Contains(text, "0B/s"), "growth is known at the second look")
	}
}

// TestGrowth: growth is that of the last minute.
func TestGrowth(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(1000, 0).Add(time.Duration(seconds) * time.Second) }
	var samples []sample
	for _, step := range []struct {
		seconds int
		held    uint64
		want    string
	}{{0, 100, "-"}, {10, 1100, "100B/s"}, {20, 100, "0B/s"}, {50, 100, "0B/s"}, {60, 0, "-1B/s"}, {70, 700, "-6B/s"}, {200, 700, "0B/s"}} {
		samples = append(recent(samples, at(step.seconds)), sample{at(step.seconds), step.held})
		assert.Equal(t, step.want, growthText(growthOf(samples)), step.seconds)
	}
	assert.Len(t, samples, 2)
}

// slowBackend has a container with a limit, and measures longer than names may take.
type slowBackend struct{ cowcommon.Backend }

func (slowBackend) Volumes(context.Context) iter.Seq2[cowcommon.Volume, error] {
	return func(yield func(cowcommon.Volume, error) bool) {
		yield(cowcommon.Volume{Name: "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ.k8s.io_2f1_2fweb", Limit: quota.Limit{Bytes: 100}}, nil)
	}
}

func (slowBackend) Usage(context.Context, string) (quota.Usage, error) {
	time.Sleep(2 * topNames)
	return quota.Usage{Bytes: 50}, nil
}

func (slowBackend) SetLimit(context.Context, string, quota.Limit) error {
	return errors.New("not called")
}

// podName names each container, while there is time.
type podName struct{}

func (podName) Name(ctx context.Context, _ containername.ID) (containername.Name, error) {
	return containername.Name{PodNamespace: "shop", Pod: "web-0", Container: "app"}, ctx.Err()
}

// TestTopNamesAfterMeasuring: however long measuring takes, there is time for names.
func TestTopNamesAfterMeasuring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := top{homes: []topHome{{snapshotsService, slowBackend{}}}, names: podName{}}
		rows, err := list.look(t.Context())
		require.NoError(t, err)
		require.Len(t, rows, 1)
		assert.Equal(t, "shop/web-0/app", rows[0].name())
	})
}

func TestTopNames(t *testing.T) {
	const volume = "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ.buildkit_2f3_2fstep"
	for want, row := range map[string]topRow{
		"shop/web-0/app":        {Service: snapshotsService, Namespace: "k8s.io", ID: "1", PodNamespace: "shop", Pod: "web-0", Container: "app"},
		"docker:web":            {Service: snapshotsService, Namespace: "moby", ID: "1", Container: "web"},
		"default/db":            {Service: snapshotsService, Namespace: "default", ID: "1", Container: "db"},
		"containerd:default/1":  {Service: snapshotsService, Namespace: "default", ID: "1"},
		"buildkit/3/step":       {Service: snapshotsService, Volume: volume},
		"other":                 {Service: snapshotsService, Volume: "other"},
		`"default/\x1b[31mred"`: {Service: snapshotsService, Namespace: "default", Container: "\x1b[31mred"},
		"layer":                 {Service: storeService, Volume: "layer"},
	} {
		assert.Equal(t, want, row.name())
	}
}
