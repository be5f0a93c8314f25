package live_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// hooksHome is a home with the layer web, and a file to which hooks write.
type hooksHome struct {
	home
	said string
}

func newHooksHome(t *testing.T) hooksHome {
	t.Helper()
	h := hooksHome{newHome(t), filepath.Join(t.TempDir(), "said")}
	h.create("web")
	require.NoError(t, os.WriteFile(h.said, nil, 0o600))
	return h
}

// say is a hook that writes a word.
func (h hooksHome) say(word string) string { return fmt.Sprintf("echo %s >>'%s'", word, h.said) }

// hooks are a pre command that does more after it has said so, and a post command.
func (h hooksHome) hooks(pre string) live.SnapshotOptions {
	return live.SnapshotOptions{Hooks: live.Hooks{Pre: h.say("pre") + "; " + pre, Post: h.say("post"), Timeout: time.Minute}}
}

// words are those that hooks have written since the last call.
func (h hooksHome) words() string {
	h.t.Helper()
	text, err := os.ReadFile(h.said)
	require.NoError(h.t, err)
	require.NoError(h.t, os.Truncate(h.said, 0))
	return strings.Join(strings.Fields(string(text)), " ")
}

// left are the records of hooks.
func (h hooksHome) left() (names []string) {
	h.t.Helper()
	names, err := filepath.Glob(filepath.Join(h.records, "hooks", "*"))
	require.NoError(h.t, err)
	return names
}

func TestHooks(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	h.WithProcesses(func(_ context.Context, volume string) (uint32, error) {
		assert.Equal(t, "web", volume)
		return 42, nil
	})
	t.Setenv("SECRET", "key")
	opts := h.hooks(h.say("in $COWSHED_HOOK $COWSHED_LAYER $COWSHED_REFERENCE $COWSHED_PID $SECRET"))
	opts.Hooks.Reference = "docker:web"
	_, err := h.Snapshot(ctx, "web", "one", opts)
	require.NoError(t, err)
	assert.Equal(t, "pre in pre web docker:web 42 post", h.words())
	assert.Empty(t, h.left())

	_, err = h.Snapshot(ctx, "none", "", opts)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = h.Snapshot(ctx, "web", "one", opts)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	assert.Equal(t, "pre in pre web docker:web 42 post", h.words(), "for the layer that is there alone")

	for _, hooks := range []live.Hooks{
		{Pre: "true"}, {Pre: "true", Timeout: -1}, {Post: "true", Timeout: time.Hour}, {Pre: "a\x00b", Timeout: 1},
		{Post: strings.Repeat("x", 100_000), Timeout: 1}, {Pre: "\xff", Timeout: 1},
	} {
		_, err := h.Snapshot(ctx, "web", "", live.SnapshotOptions{Hooks: hooks})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
}

// untilSaid tries with longer and longer times for the hooks, until the machine is fast enough for all their words.
func untilSaid(t *testing.T, try func(timeout time.Duration) (said bool)) {
	t.Helper()
	timeout := 100 * time.Millisecond
	for ; !try(timeout); timeout *= 4 {
		require.Less(t, timeout, testfs.Patience)
	}
}

// TestFailingHooks: without its pre command there is no snapshot, and its post command is run. A post command that fails leaves
// the snapshot.
func TestFailingHooks(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	_, err := h.Snapshot(ctx, "web", "", h.hooks("echo why >&2; exit 3"))
	require.ErrorIs(t, err, errdefs.ErrAborted)
	require.ErrorContains(t, err, "exit status 3: why")
	var failed *exec.ExitError
	require.ErrorAs(t, err, &failed)

	assert.Equal(t, "pre post", h.words())

	slow := h.hooks("sleep 1000")
	untilSaid(t, func(timeout time.Duration) bool {
		slow.Hooks.Timeout = timeout
		_, err = h.Snapshot(ctx, "web", "", slow)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errdefs.ErrAborted)
		return h.words() == "pre post"
	})

	cancelled, cancel := context.WithCancel(ctx)
	h.WithProcesses(func(context.Context, string) (uint32, error) { cancel(); return 0, nil })
	_, err = h.Snapshot(cancelled, "web", "", h.hooks("sleep 1000"))
	require.ErrorIs(t, err, context.Canceled)
	h.WithProcesses(nil)
	assert.Equal(t, "post", h.words(), "pre was not even begun when the third was cancelled")
	assert.Empty(t, h.names("web"))

	opts := h.hooks("true")
	opts.Hooks.Post = "echo why; exit 4"
	m, err := h.Snapshot(ctx, "web", "one", opts)
	require.ErrorIs(t, err, errdefs.ErrAborted)
	require.ErrorContains(t, err, "exit status 4: why")
	assert.Equal(t, "one", m.Name)
	assert.Equal(t, []string{"one"}, h.names("web"))
	assert.Empty(t, h.left())
	h.assertClean(1, "web")
}

// hooksProcessEnv makes this test binary take a snapshot with hooks, in the home of that directory.
const hooksProcessEnv = "COWSHED_TEST_HOOKS"

// TestHooksProcess is the process that TestHooksOfKilled kills.
func TestHooksProcess(t *testing.T) {
	mnt := os.Getenv(hooksProcessEnv)
	if mnt == "" {
		return
	}
	backend, err := btrfs.Open(t.Context(), filepath.Join(mnt, "home"), btrfs.Options{})
	require.NoError(t, err)
	_, err = live.New(backend, filepath.Join(mnt, "live"), nil).Snapshot(t.Context(), "web", "killed", live.SnapshotOptions{
		Hooks: live.Hooks{Pre: "echo began; exec sleep 1000", Post: "echo post >>" + filepath.Join(mnt, "said"), Timeout: testfs.Lifetime},
	})
	require.NoError(t, err)
}

// nameOf is the name of a process, if there is one.
func nameOf(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(name))
}

// TestHooksOfKilled: a process was killed between its hooks. The other is run once, by the next that looks, and not while the process
// is there.
func TestHooksOfKilled(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	mnt := filepath.Dir(h.records)
	h.said = filepath.Join(mnt, "said")
	require.NoError(t, os.WriteFile(h.said, nil, 0o600))
	process := exec.Command(os.Args[0], "-test.run=^TestHooksProcess$")
	process.Env = append(os.Environ(), hooksProcessEnv+"="+mnt)
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	testfs.Start(t, process)
	require.Eventually(t, func() bool { // it has written all that it writes, for which its parent is needed
		children := childrenOf(t, process.Process.Pid)
		return len(h.left()) == 1 && len(children) == 1 && nameOf(children[0]) == "sleep"
	}, testfs.Patience, 5*time.Millisecond)
	require.NoError(t, h.EndHooks(ctx))
	assert.Empty(t, h.words(), "the process is there")
	problems, err := h.Check(ctx)
	require.NoError(t, err)
	assert.Empty(t, problems)

	children := childrenOf(t, process.Process.Pid)
	require.NoError(t, process.Process.Kill())
	require.Error(t, testfs.Wait(t, process))
	require.NoError(t, h.EndHooks(ctx))
	assert.Empty(t, h.words(), "the pre command is still running, and may stop a program later")
	for _, child := range children {
		require.NoError(t, syscall.Kill(child, syscall.SIGKILL))
	}
	require.Eventually(t, func() bool { // the record is free when the command is gone
		problems, err = h.Check(ctx)
		return err == nil && len(problems) == 1
	}, testfs.Patience, 5*time.Millisecond)
	assert.Contains(t, problems[0].What, "echo post")
	require.NoError(t, h.EndHooks(ctx))
	assert.Equal(t, "post", h.words())
	require.NoError(t, h.EndHooks(ctx))
	assert.Empty(t, h.words(), "once")
	h.assertClean(0, "web")
}

// childrenOf lists the processes that a process has started.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	require.NoError(t, err)
	for _, file := range files {
		text, _ := os.ReadFile(file) // the thread may be gone
		for _, field := range strings.Fields(string(text)) {
			var child int
			_, err := fmt.Sscan(field, &child)
			require.NoError(t, err)
			children = append(children, child)
		}
	}
	return children
}

// leave leaves the record of a post command, as a process does that is killed.
func (h hooksHome) leave(post string) (file string) {
	h.t.Helper()
	file = filepath.Join(h.records, "hooks", "hook-left.json")
	for _, dir := range []string{"hooks", "moments"} {
		require.NoError(h.t, os.MkdirAll(filepath.Join(h.records, dir), 0o700))
	}
	require.NoError(h.t, os.WriteFile(file, fmt.Appendf(nil, `{"version":1,"layer":"web","post":%q,"timeout":60000000000}`, post), 0o600))
	return file
}

// TestUntrustedHooks: no command is run that others may have written.
func TestUntrustedHooks(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	file := h.leave(h.say("post"))
	dir := filepath.Dir(file)
	for name, change := range map[string]struct{ do, undo func() error }{
		"file of another":  {func() error { return os.Chown(file, 1, -1) }, func() error { return os.Chown(file, 0, -1) }},
		"file for others":  {func() error { return os.Chmod(file, 0o602) }, func() error { return os.Chmod(file, 0o600) }},
		"file for a group": {func() error { return os.Chmod(file, 0o620) }, func() error { return os.Chmod(file, 0o600) }},
		"dir of another":   {func() error { return os.Chown(dir, 1, -1) }, func() error { return os.Chown(dir, 0, -1) }},
		"root for others":  {func() error { return os.Chmod(filepath.Dir(h.records), 0o777) }, func() error { return os.Chmod(filepath.Dir(h.records), 0o755) }},
	} {
		require.NoError(t, change.do(), name)
		require.ErrorIs(t, h.EndHooks(ctx), errdefs.ErrPermissionDenied, name)
		problems, err := h.Check(ctx)
		require.NoError(t, err)
		assert.Len(t, problems, 1, name)
		require.NoError(t, change.undo(), name)
	}
	assert.Empty(t, h.words())
	require.NoError(t, os.Rename(file, dir+"/elsewhere"))
	require.NoError(t, os.Symlink("elsewhere", file))
	require.ErrorIs(t, h.EndHooks(ctx), syscall.ELOOP)
	assert.Empty(t, h.words())
	require.NoError(t, os.Rename(dir+"/elsewhere", file))

	for _, text := range []string{"{", `{"version":2,"layer":"web"}`, `{"version":1,"layer":"../x"}`, `{"version":1,"layer":"web","post":"true"}`} {
		require.NoError(t, os.WriteFile(dir+"/hook-bad.json", []byte(text), 0o600))
		h.leave(h.say("post"))
		require.Error(t, h.EndHooks(ctx), text)
		assert.Equal(t, "post", h.words(), "the other is run all the same")
	}
}

// TestHooksBeforeNext: a snapshot with hooks first runs those that are left, and goes on if these fail.
func TestHooksBeforeNext(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	file := h.leave(h.say("left") + "; exit 1")
	_, err := h.Snapshot(ctx, "web", "one", h.hooks("true"))
	require.NoError(t, err)
	assert.Equal(t, "left pre post", h.words())
	require.Error(t, h.EndHooks(ctx), "until it succeeds")
	assert.Equal(t, "left", h.words())
	require.NoError(t, os.Remove(file))

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	h.leave(h.say("left"))
	require.ErrorIs(t, h.EndHooks(cancelled), context.Canceled)
	require.NoError(t, h.EndHooks(ctx))
	assert.Equal(t, "left", h.words(), "it is run later")
}

// TestFailedLeftHook: a post command that is left and fails stays with its last error, which doctor tells, until it succeeds.
func TestFailedLeftHook(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	file := h.leave("echo why; exit 1")
	problems := h.CheckSchedules(time.Now())
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].What, "was not run")
	for range 2 {
		require.ErrorIs(t, h.EndHooks(ctx), errdefs.ErrAborted)
		problems = h.CheckSchedules(time.Now())
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0].What, "has failed, on ")
		assert.Contains(t, problems[0].What, "why")
		assert.Contains(t, problems[0].Advice, "echo why; exit 1")
	}
	left, err := h.LeftHooks()
	require.NoError(t, err)
	require.Len(t, left, 1)
	assert.Equal(t, file, left[0].Record)
	assert.Equal(t, []string{file}, h.left(), "nothing half-written is left")

	record, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(record), "exit 1", "exit 0", 1)), 0o600))
	require.NoError(t, h.EndHooks(ctx))
	assert.Empty(t, h.left())
	assert.Empty(t, h.CheckSchedules(time.Now()))
}

// TestHooksInTime: neither a slow answer about the process nor others that are at work keep the post command from being run.
func TestHooksInTime(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	opts, begun := h.hooks("true"), time.Now()
	h.WithProcesses(func(ctx context.Context, _ string) (uint32, error) {
		deadline, _ := ctx.Deadline()
		assert.Greater(t, deadline.Sub(begun), time.Second)
		return 0, context.DeadlineExceeded
	})
	opts.Hooks.Timeout = time.Second
	_, _ = h.Snapshot(ctx, "web", "", opts) // the time may be too short for this machine
	h.words()
	opts.Hooks.Timeout = testfs.Patience
	_, err := h.Snapshot(ctx, "web", "one", opts)
	require.NoError(t, err)
	assert.Equal(t, "pre post", h.words())

	lock, err := os.OpenFile(filepath.Join(h.records, ".names"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, flock.Exclusive(ctx, lock))
	untilSaid(t, func(timeout time.Duration) bool {
		opts.Hooks.Timeout = timeout
		_, err = h.Snapshot(ctx, "web", "two", opts)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return h.words() == "pre post" && !errors.Is(err, errdefs.ErrAborted)
	})

	require.NoError(t, flock.Unlock(lock))
	_, err = h.Snapshot(ctx, "web", "three", h.hooks("sleep 1.5 & true"))
	require.NoError(t, err, "something in the background has the output open")
	require.NoError(t, os.Chmod(h.records, 0o777))
	h.words()
	_, err = h.Snapshot(ctx, "web", "four", opts)
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
	assert.Empty(t, h.words(), "no command is run whose record would not be trusted")
}

// TestHooksOnFull: without room for the record, no command begins.
func TestHooksOnFull(t *testing.T) {
	h, ctx := newHooksHome(t), t.Context()
	mnt := filepath.Dir(h.records)
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)
	_, err := h.Snapshot(ctx, "web", "one", h.hooks("true"))
	require.ErrorIs(t, err, syscall.ENOSPC)
	assert.Empty(t, h.words())
	assert.Empty(t, h.left())
	require.NoError(t, h.EndHooks(ctx))
}

// TestHooksInContainer: the commands are run in the container. A container that does not run is no error. The pre command of a process
// that is gone is ended before the post command.
func TestHooksInContainer(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	hooks := live.Hooks{Pre: "freeze", Post: "thaw", InContainer: true, Timeout: time.Minute, Reference: "docker:web"}
	_, err := h.Snapshot(ctx, "web", "none", live.SnapshotOptions{Hooks: hooks})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "it is no container")
	require.ErrorIs(t, h.SetSchedule(ctx, live.Schedule{Layer: "web", Every: time.Hour, Keep: 1, Hooks: hooks}), errdefs.ErrInvalidArgument)

	var said []string
	var ids []string
	fails := map[string]error{}
	note := func(what string, e live.Exec) error {
		if len(e.Args) > 0 {
			what += " " + e.Args[len(e.Args)-1]
		}
		said, ids = append(said, what), append(ids, e.ID)
		assert.Equal(t, "web", e.Volume)
		return fails[what]
	}
	h.WithContainers(live.Containers{
		Run: func(_ context.Context, e live.Exec) error {
			assert.Contains(t, e.Env, "COWSHED_REFERENCE=docker:web")
			return note("run", e)
		},
		Kill: func(_ context.Context, e live.Exec) error { return note("kill", e) },
	})
	_, err = h.Snapshot(ctx, "web", "one", live.SnapshotOptions{Hooks: hooks})
	require.NoError(t, err)
	assert.Equal(t, []string{"run freeze", "run thaw"}, said)
	assert.NotEqual(t, ids[0], ids[1])

	said, fails["run freeze"] = nil, errdefs.ErrAborted
	_, err = h.Snapshot(ctx, "web", "two", live.SnapshotOptions{Hooks: hooks})
	require.ErrorIs(t, err, errdefs.ErrAborted)
	assert.Equal(t, []string{"run freeze", "run thaw"}, said)
	fails["run freeze"] = errdefs.ErrNotFound
	_, err = h.Snapshot(ctx, "web", "two", live.SnapshotOptions{Hooks: hooks})
	require.ErrorIs(t, err, errdefs.ErrAborted, "anything may not be found")
	fails["run freeze"], fails["run thaw"] = live.ErrNotRunning, live.ErrNotRunning
	_, err = h.Snapshot(ctx, "web", "two", live.SnapshotOptions{Hooks: hooks})
	require.NoError(t, err, "it does not run")
	assert.Equal(t, []string{"one", "two"}, h.names("web"))

	fails["run freeze"], fails["run thaw"] = live.ErrNoContainer, live.ErrNoContainer
	_, err = h.Snapshot(ctx, "web", "three", live.SnapshotOptions{Hooks: hooks})
	require.NoError(t, err, "nobody uses it")
	h.edit("web", func(string) {
		_, err = h.Snapshot(ctx, "web", "four", live.SnapshotOptions{Hooks: hooks})
	})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "somebody uses it, in a container that nobody has found")
	require.ErrorContains(t, err, "containerd_address")
	assert.Equal(t, []string{"one", "two", "three"}, h.names("web"))
	delete(fails, "run freeze")
	fails["run thaw"] = live.ErrNotRunning

	said = nil
	record := `{"version": 1, "layer": "web", "pre": "freeze", "post": "thaw", "timeout": 60000000000, "in_container": true, "reference": "docker:web"}`
	require.NoError(t, os.WriteFile(filepath.Join(h.records, "hooks/hook-aaaaaaaaaaaa.json"), []byte(record), 0o600))
	require.NoError(t, h.EndHooks(ctx))
	assert.Equal(t, []string{"kill", "run thaw"}, said)
	assert.Equal(t, "cowshed-hook-aaaaaaaaaaaa-pre", ids[len(ids)-2])
}
