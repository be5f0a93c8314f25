package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

func TestScheduleCommand(t *testing.T) {
	a := newWeb(t)
	assert.Contains(t, a.ok(t, "snapshot", "web", "--every", "1h", "-m", "hourly"), "every 1h, the last 24 are kept, the next is due on ")
	var info scheduleInfo
	a.json(t, &info, "snapshot", "web", "--every", "24h", "--keep", "7", "--pre", "true", "--post", "false")
	assert.Equal(t, "24h", info.Every)
	assert.True(t, info.Next.After(time.Now()), info.Next)
	var infos []scheduleInfo
	a.json(t, &infos, "snapshot", "schedules")
	require.Len(t, infos, 2)
	assert.Equal(t, "hourly", infos[0].Message)
	assert.Equal(t, []any{"web", 7, "true", "false", 0}, []any{infos[1].Reference, infos[1].Keep, infos[1].Pre, infos[1].Post, infos[1].Taken})
	assert.Regexp(t, `web +1h +24 +0 +- +2\d{3}-.* -\n`, a.ok(t, "snapshot", "schedules"))
	assert.Empty(t, a.ok(t, "snapshot", "ls", "web", "--json")[3:], "the command itself takes none")
	for code, args := range map[int][]string{
		exitNotFound: {"snapshot", "none", "--every", "1h"},
		exitUsage:    {"snapshot", "web", "name", "--every", "1h"},
	} {
		assert.Equal(t, code, a.run(t, args...).code, args)
	}
	for _, args := range [][]string{{"--keep", "1"}, {"--every", "0"}, {"--every", "1h", "--keep", "0"}, {"--every", "90s"}, {"--every", "1h", "--pre", "x", "--hook-timeout", "1h"}} {
		assert.Equal(t, exitUsage, a.run(t, append([]string{"snapshot", "web"}, args...)...).code, args)
	}

	a.past(t, "live/btrfs")
	assert.Regexp(t, `web +1h +24 +0 +- +2020-.* overdue\n`, a.ok(t, "snapshot", "schedules"))
	out := a.ok(t, "doctor")
	assert.Contains(t, out, "the schedule of layer web, every 24h, has taken no snapshot since 2020-")
	assert.Contains(t, out, "start cowshed serve")
	assert.Equal(t, exitNotFound, a.run(t, "snapshot", "unschedule", "web", "--every", "1m").code)
	a.ok(t, "snapshot", "unschedule", "web", "--every", "1h")
	infos = nil
	a.json(t, &infos, "snapshot", "schedules")
	assert.Len(t, infos, 1)
	a.ok(t, "rm", "web")
	assert.Equal(t, "[]\n", a.ok(t, "snapshot", "schedules", "--json"), "it goes with its layer")
	require.NoError(t, os.WriteFile(filepath.Join(a.root, "live/btrfs/schedules/x.json"), nil, 0o600))
	assert.Equal(t, exitFailure, a.run(t, "snapshot", "schedules").code)
	assert.Equal(t, exitFailure, a.run(t, "doctor").code)
}

// TestScheduleOfLimited: people hear that old data may count for the limit of a layer, and nothing where there is no limit.
func TestScheduleOfLimited(t *testing.T) {
	a := newWeb(t)
	const warning = "cowshed: web has a limit: data that only its snapshots still have counts for it"
	assert.NotContains(t, a.run(t, "snapshot", "web", "--every", "1h").err, "limit")
	a.ok(t, "limit", "web", "1G")
	assert.Contains(t, a.run(t, "snapshot", "web", "--every", "1h").err, warning)
	assert.NotContains(t, a.run(t, "snapshot", "web").err, warning)
}

func TestScheduleOutcome(t *testing.T) {
	failure, incomplete := &live.Failure{}, &live.Failure{Snapshot: "every-1h"}
	for want, i := range map[string]scheduleInfo{
		"-": {}, "ok": {Taken: 1}, "failed": {Taken: 1, Failed: failure, Overdue: true}, "incomplete": {Taken: 1, Failed: incomplete},
		"overdue": {Taken: 1, Failed: incomplete, Overdue: true},
	} {
		assert.Equal(t, want, i.outcome())
	}
}

var sinceInRecord = regexp.MustCompile(`"since": "[^"]*"`)

// past changes the records of schedules in a directory as if they had been set in 2020.
func (a at) past(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(a.root, dir, "schedules/*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		record, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Regexp(t, sinceInRecord, string(record))
		require.NoError(t, os.WriteFile(file, sinceInRecord.ReplaceAll(record, []byte(`"since": "2020-01-01T12:00:00Z"`)), 0o600))
	}
}

// TestStopWithPost: the daemon ends well while a post command still runs after stop_timeout, and the next start runs it again.
func TestStopWithPost(t *testing.T) {
	h := newContainersHost(t, "snapshot")
	a := at{root: h.root}
	pids := filepath.Join(t.TempDir(), "pids")
	h.cowshed("snapshot", web, "--every", "8784h", "--post", fmt.Sprintf("echo $$ >>%[1]s; test $(wc -l <%[1]s) = 2 || exec sleep 1000", pids),
		"--hook-timeout", "10m")
	h.stop()
	a.past(t, "containerd/live/btrfs")
	run := func() (list []string) {
		text, _ := os.ReadFile(pids)
		return strings.Fields(string(text))
	}
	h.start(h.command("--stop-timeout", "1s"))
	require.Eventually(t, func() bool { return len(run()) == 1 }, testfs.Patience, 10*time.Millisecond)
	pid, err := strconv.Atoi(run()[0])
	require.NoError(t, err)
	end := sync.OnceValue(func() error { return syscall.Kill(pid, syscall.SIGKILL) }) // as systemd does
	t.Cleanup(func() { _ = end() })
	h.stop()
	assert.Contains(t, h.log.String(), "its post command still runs")
	assert.NotContains(t, h.log.String(), "ERROR")
	require.NoError(t, end(), "it has outlasted the daemon")

	h.start(h.command())
	require.Eventually(t, func() bool { return len(run()) == 2 }, testfs.Patience, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		left, err := filepath.Glob(filepath.Join(h.root, "containerd/live/btrfs/hooks/*"))
		return err == nil && len(left) == 0
	}, testfs.Patience, 10*time.Millisecond)
	h.stop()
}

// TestServeSchedules: the daemon takes one snapshot for those that were missed, of a container and of a layer of the store. After
// a kill between two hooks it runs the other, and takes the snapshot that is missing.
func TestServeSchedules(t *testing.T) {
	h := newContainersHost(t, "snapshot")
	a := at{root: h.root}
	a.ok(t, "init", "--driver", "btrfs")
	a.ok(t, "create", "layer")
	a.ok(t, "snapshot", "layer", "--every", "8784h")
	began, said := filepath.Join(t.TempDir(), "began"), filepath.Join(t.TempDir(), "said")
	h.cowshed("snapshot", web, "--every", "8784h", "--keep", "2", // a period that does not pass meanwhile
		"--pre", fmt.Sprintf("grep -q 'SigIgn.*[02468ace]...$' /proc/self/status || exit 1; test -e %[1]s && exit 0; echo $$ >%[1]s.new; mv %[1]s.new %[1]s; exec sleep 1000", began),
		"--post", fmt.Sprintf("echo $COWSHED_REFERENCE >>%s", said), "--hook-timeout", "5m")
	assert.Regexp(t, `containerd:test/web +8784h +2 +0 `, h.cowshed("snapshot", "schedules"))
	h.stop()
	a.past(t, "live/btrfs")
	a.past(t, "containerd/live/btrfs")
	r := a.run(t, "doctor", "--containerd", "--config", h.config)
	assert.Contains(t, r.out, "every 8784h, has taken no snapshot since 2020-")

	h.start(h.command())
	var pid int
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(began)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err == nil
	}, testfs.Patience, 10*time.Millisecond)
	h.kill()
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	assert.NoFileExists(t, said)
	require.Eventually(t, func() bool { // the pre command has its files open until it has ended
		r = a.run(t, "doctor", "--containerd", "--config", h.config)
		return strings.Contains(r.out, "the post command of a snapshot of layer s-")
	}, testfs.Patience, 100*time.Millisecond)

	h.start(h.command())
	taken := func(reference string) int {
		var infos []scheduleInfo
		a.json(t, &infos, "snapshot", "schedules", "--config", h.config)
		for _, i := range infos {
			if i.Reference == reference {
				return i.Taken
			}
		}
		return -1
	}
	require.Eventually(t, func() bool { return taken(web) == 1 && taken("layer") == 1 }, testfs.Patience, 50*time.Millisecond)
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(said)
		return err == nil && string(text) == web+"\n"+web+"\n" // that of the killed daemon, and that of the snapshot
	}, testfs.Patience, 10*time.Millisecond)
	assert.Contains(t, h.cowshed("snapshot", "ls", web), "every-8784h-")
	h.cowshed("snapshot", "unschedule", web)
	assert.Equal(t, -1, taken(web))
	h.stop()
	assert.Contains(t, h.log.String(), "took a snapshot by schedule")
}
