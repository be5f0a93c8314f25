package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// mainEnv makes the test binary the program.
const mainEnv = "SANDBOX_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// makeRoot makes a small root filesystem around busybox.
func makeRoot(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"bin", "dev", "etc", "proc"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	program, err := exec.LookPath("busybox")
	require.NoError(t, err, "busybox-static is installed")
	data, err := os.ReadFile(program)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bin", "busybox"), data, 0o755))
	for _, name := range []string{"sh", "cat", "sleep"} {
		require.NoError(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "etc", "issue"), []byte("before\n"), 0o644))
	return dir
}

// makeTar makes a tar of a root filesystem.
func makeTar(t *testing.T, dir string) (file string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "root.tar"))
	require.NoError(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	require.NoError(t, w.AddFS(os.DirFS(dir)))
	require.NoError(t, w.Close())
	return f.Name()
}

// newOptions are options for 10 forks on a filesystem.
func newOptions(t *testing.T, mnt, script string) options {
	t.Helper()
	return options{
		root: makeRoot(t), dir: mnt, forks: 10, jobs: 3, limit: 4 << 20, timeout: testfs.Patience, runtime: unshareProgram,
		command: []string{"sh", "-ec", script},
	}
}

// assertGone asserts that a filesystem has nothing, and that nothing below it is mounted.
func assertGone(t *testing.T, mnt string) {
	t.Helper()
	entries, err := os.ReadDir(mnt)
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.Empty(t, testfs.Subvolumes(t, mnt))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	assert.NotContains(t, string(mounts), mnt+"/")
}

// The numbers of the forks are the scores. The last three commands fail: one ends with an error, one prints no score, and one
// writes more than its limit.
const mixedScript = `
echo "$SANDBOX_FORK" >/etc/issue
case $SANDBOX_FORK in
8) exit 3 ;;
9) echo none; exit ;;
10) while cat /bin/busybox; do :; done >/etc/large; exit 1 ;;
esac
echo $$ >/etc/first
echo "$SANDBOX_FORK"
`

func TestSandbox(t *testing.T) {
	mnt := testfs.Btrfs(t)
	opts := newOptions(t, mnt, mixedScript)
	opts.diffs = t.TempDir()
	var out bytes.Buffer
	s, err := open(t.Context(), opts, &out)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.backend.Close() }) // again, or after a failure
	require.NoError(t, s.use(t.Context()))

	for i, r := range s.results {
		if i < 7 {
			assert.NoError(t, r.err)
			assert.InDelta(t, i+1, r.score, 0)
			assert.Equal(t, 3, r.changes, "/etc, /etc/issue and /etc/first")
			assert.Equal(t, []string{"etc/", "etc/first", "etc/issue"}, namesOf(t, filepath.Join(opts.diffs, r.fork+".tar")))
		}
	}
	var ended *exec.ExitError
	require.ErrorAs(t, s.results[7].err, &ended)
	assert.Equal(t, 3, ended.ExitCode())
	require.ErrorContains(t, s.results[8].err, `"none"`)
	require.ErrorContains(t, s.results[9].err, "quota", "the limit of the fork")

	dir, err := s.backend.Mount(t.Context(), base, "")
	require.NoError(t, err)
	for name, want := range map[string]string{"issue": "7\n", "first": "1\n"} { // it is the first process of its namespace
		data, err := os.ReadFile(filepath.Join(dir, "etc", name))
		require.NoError(t, err)
		assert.Equal(t, want, string(data))
	}
	require.NoError(t, s.backend.Unmount(t.Context(), base))
	require.NoError(t, s.close(t.Context()))
	for _, want := range []string{"10 forks by one call", "3 failed", "fork-007 with score 7", "RSS", "KiB per fork", "10 forks and the base"} {
		assert.Contains(t, out.String(), want)
	}
	assertGone(t, mnt)
}

// namesOf lists the names in a tar.
func namesOf(t *testing.T, file string) (names []string) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
			return names
		}
		names = append(names, header.Name)
	}
}

func TestSandboxOfTar(t *testing.T) {
	mnt := testfs.Btrfs(t)
	opts := newOptions(t, mnt, `read line </etc/issue; test "$line" = before; echo "-$SANDBOX_FORK"`)
	opts.root = makeTar(t, opts.root)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), opts, &out))
	assert.Contains(t, out.String(), "fork-001 with score -1: 0 changes")
	assertGone(t, mnt)
}

func TestSandboxFails(t *testing.T) {
	mnt := testfs.Btrfs(t)
	for name, test := range map[string]struct {
		change func(o *options)
		want   string
	}{
		"commands fail":    {func(o *options) { o.command = []string{"sh", "-c", "exit 1"} }, "no command has succeeded"},
		"too long":         {func(o *options) { o.command, o.timeout, o.forks = []string{"sleep", "1000"}, time.Second/2, 2 }, "no command has succeeded"},
		"no such root":     {func(o *options) { o.root = "/no/such/root" }, "no such file"},
		"root is no tar":   {func(o *options) { o.root = filepath.Join(o.root, "bin", "busybox") }, "root: "},
		"no room for tars": {func(o *options) { o.diffs = "/no/such/directory" }, "diff: "},
		"not on btrfs":     {func(o *options) { o.dir = "/proc" }, "/proc"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := newOptions(t, mnt, `echo 1`)
			test.change(&opts)
			require.ErrorContains(t, run(t.Context(), opts, io.Discard), test.want)
			assertGone(t, mnt)
		})
	}
}

// TestInterrupt: Ctrl-C while commands run ends them, and leaves nothing.
func TestInterrupt(t *testing.T) {
	mnt := testfs.Btrfs(t)
	opts := newOptions(t, mnt, "")
	cmd := exec.Command(os.Args[0], "-root", opts.root, "-dir", mnt, "-forks", "10", "-jobs", "2", "-limit", "4M", "-runtime", unshareProgram,
		"sh", "-c", "sleep 1000 & echo >/etc/begun; sleep 1000")
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	testfs.Start(t, cmd)
	require.Eventually(t, func() bool { return countNamed(mnt, "begun") == 2 }, testfs.Patience, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.Error(t, testfs.Wait(t, cmd))
	assert.Equal(t, 1, cmd.ProcessState.ExitCode(), out.String())
	assert.Contains(t, out.String(), "run: context canceled")
	assert.False(t, cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled())
	assertGone(t, mnt)
	assert.Empty(t, processesOf(t, mnt), "processes of the commands")
}

// countNamed counts the files of that name below dir, whatever else changes there.
func countNamed(dir, name string) (count int) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == name {
			count++
		}
		return nil
	})
	return count
}

// processesOf lists the processes whose root is below dir.
func processesOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	roots, err := filepath.Glob("/proc/[0-9]*/root")
	require.NoError(t, err)
	for _, root := range roots {
		if target, err := os.Readlink(root); err == nil && strings.HasPrefix(target, dir+"/") {
			found = append(found, fmt.Sprint(root, " ", target))
		}
	}
	return found
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-root", "r", "-dir", "d", "-forks", "3", "-limit", "2M", "-runtime", "unshare", "make", "-j2"})
	require.NoError(t, err)
	assert.Equal(t, []string{"make", "-j2"}, o.command)
	assert.Equal(t, uint64(2<<20), o.limit)
	for _, args := range [][]string{
		{"-root", "r", "-dir", "d"},
		{"-root", "r", "make"},
		{"-dir", "d", "make"},
		{"-root", "r", "-dir", "d", "-forks", "0", "make"},
		{"-root", "r", "-dir", "d", "-limit", "much", "make"},
		{"-root", "r", "-dir", "d", "-runtime", "podman", "make"},
	} {
		_, err := parse(args)
		assert.Error(t, err, args)
	}
}
