package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// systemctl makes a systemctl that records its arguments, and fails for the unit named in fail.
func systemctl(t *testing.T, fail string) (asked func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := "#!/bin/sh\necho \"$@\" >>" + log + "\n[ \"$2\" != \"" + fail + "\" ] || { echo no such unit; exit 5; }\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755))
	t.Setenv("PATH", dir)
	return func() string {
		text, err := os.ReadFile(log)
		if err != nil {
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		return string(text)
	}
}

// TestSetup: the command shows its changes, makes them, and takes them back; it restarts the units that it is asked
// to.
func TestSetup(t *testing.T) {
	asked := systemctl(t, "")
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	write(t, config, "version = 3\n")
	a := at{root: "/srv/cowshed"}
	run := func(args ...string) string {
		return a.ok(t, append([]string{"setup", "containerd", "--containerd-config", config}, args...)...)
	}
	out := run()
	for _, text := range []string{
		"--- /dev/null\n+++ " + dir + "/conf.d/cowshed.toml\n", "+    root = \"/srv/cowshed/containerd\"\n",
		"--- " + config + "\n+++ " + config + "\n@@ -1 +1,2 @@\n version = 3\n+imports = [\"" + dir + "/conf.d/cowshed*.toml\"]\n",
		"nothing was changed",
	} {
		assert.Contains(t, out, text)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1)

	assert.Contains(t, run("--apply"), "it takes effect with: systemctl restart containerd.service\n")
	assert.FileExists(t, filepath.Join(dir, "conf.d", "cowshed.toml"))
	assert.Equal(t, "nothing is to be done: containerd uses Cowshed as it is\n", run("--apply"))
	assert.Empty(t, asked())
	assert.Contains(t, run("--apply", "--restart"), "restarted containerd.service\n")
	assert.Equal(t, "restart containerd.service\n", asked())
	assert.Contains(t, run("--undo"), "taken back\n")
	assert.Equal(t, "nothing is to be done: cowshed setup containerd --apply has changed nothing here\n", run("--undo"))
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	assert.Equal(t, "version = 3\n", string(text))
	assert.NoDirExists(t, filepath.Join(dir, "conf.d"))

	systemctl(t, "containerd.service")
	r := a.run(t, "setup", "containerd", "--containerd-config", config, "--apply", "--restart")
	assert.Equal(t, exitFailure, r.code)
	assert.Contains(t, r.err, "no such unit")
	assert.FileExists(t, filepath.Join(dir, "conf.d", "cowshed.toml"))
}

// TestSetupRefuses: a refusal has the text to add, and setup succeeds after that was added by hand.
func TestSetupRefuses(t *testing.T) {
	t.Setenv("PATH", "")
	config := filepath.Join(t.TempDir(), "config.toml")
	write(t, config, "version = 3\n[proxy_plugins]\ncowshed = {type = 'snapshot', address = '/run/other.sock'}\n")
	args := []string{"setup", "containerd", "--containerd-config", config, "--apply"}
	a := at{root: "/srv/cowshed"}
	r := a.run(t, args...)
	assert.Equal(t, exitPrecondition, r.code)
	_, paste, found := strings.Cut(r.err, "Put this there:\n\n")
	require.True(t, found, r.err)
	write(t, config, "version = 3\n"+paste)
	assert.Contains(t, a.ok(t, args...), "changed")
	assert.Contains(t, a.ok(t, args...), "nothing is to be done")
}

// TestSetupAsNobody: without privileges the command shows its changes, and changes nothing.
func TestSetupAsNobody(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		require.NoError(t, os.Chmod(path, 0o755))
	}
	config := filepath.Join(dir, "config.toml")
	write(t, config, "version = 3\n")
	program := filepath.Join(dir, "program")
	self, err := os.Executable()
	require.NoError(t, err)
	text, err := os.ReadFile(self)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(program, text, 0o755)) // nobody may not see where the tests' program is
	run := func(args ...string) (string, int) {
		cmd := exec.Command(program, append([]string{"setup", "containerd", "--containerd-config", config}, args...)...)
		cmd.Env = []string{asProgramEnv + "=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			require.ErrorAs(t, err, new(*exec.ExitError))
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	out, code := run()
	assert.Zero(t, code, out)
	assert.Contains(t, out, "+imports = ")
	out, code = run("--apply")
	assert.Equal(t, exitFailure, code)
	assert.Contains(t, out, "permission denied")
	assert.Contains(t, out, "sudo cowshed")
	assert.NoDirExists(t, filepath.Join(dir, "conf.d"))

	// As the hint says.
	at{root: "/srv/cowshed"}.ok(t, "setup", "containerd", "--containerd-config", config, "--apply")
	require.NoError(t, os.Chmod(config, 0o600))
	out, code = run("--undo")
	assert.Equal(t, exitFailure, code)
	assert.Contains(t, out, "permission denied")
	assert.FileExists(t, filepath.Join(dir, "conf.d", "cowshed.toml"))
}

var initAdvice = regexp.MustCompile(`cowshed (init(?: --loop (?:SIZE|20G))?)`)

// TestAdviceToInit follows the advice of each command where there is no store and no filesystem for one. Then the command
// works.
func TestAdviceToInit(t *testing.T) {
	testfs.Root(t)
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		testfs.Skip(t, "needs mkfs.btrfs")
	}
	for _, command := range []string{"init", "ls", "doctor", "serve", "doctor --containerd"} {
		t.Run(command, func(t *testing.T) {
			dir := t.TempDir()
			a := at{root: filepath.Join(dir, "root")}
			require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
			t.Cleanup(func() { a.ok(t, "deinit", "--yes") })
			args := strings.Fields(command)
			switch command {
			case "serve":
				args = append(args, "--state", filepath.Join(dir, "state"), "--address", filepath.Join(dir, "c.sock"))
			case "doctor --containerd":
				args = append(args, "--containerd-config", filepath.Join(dir, "none"), "--docker-config", filepath.Join(dir, "none"))
			}
			for advised, asked := 0, args; ; advised++ {
				r := a.run(t, asked...)
				said := initAdvice.FindStringSubmatch(r.out + r.err)
				require.NotNil(t, said, "%s%s", r.out, r.err)
				require.Less(t, advised, 2)
				asked = strings.Fields(regexp.MustCompile("SIZE|20G").ReplaceAllString(said[1], "300M"))
				if a.run(t, asked...).code == exitOK {
					break
				}
			}
			switch command {
			case "serve":
				// It serves until it is stopped: TestServeProcess tests that end.
				d := &served{t: t, root: a.root, dir: dir, socket: filepath.Join(dir, "c.sock"), notify: notifySocket(t, dir)}
				d.start(d.command())
				d.stop()
			case "init", "ls":
				a.ok(t, args...)
			default:
				assert.NotRegexp(t, initAdvice, a.run(t, args...).out)
			}
		})
	}
}
