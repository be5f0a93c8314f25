package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestRetry: a command that fails twice runs three times, and a command that goes on failing has its status passed on.
func TestRetry(t *testing.T) {
	for _, c := range []struct {
		failures, runs, status int
	}{{0, 1, 0}, {2, 3, 0}, {3, 3, 7}} {
		dir := t.TempDir()
		command := exec.Command(abs(t, "retry.sh"), "sh", "-c", `echo run >>runs; [ "$(wc -l <runs)" -gt "$0" ] || exit 7`, string(rune('0'+c.failures)))
		command.Dir, command.Env = dir, append(os.Environ(), "RETRY_PAUSE=0")
		_ = command.Run()
		assert.Equal(t, c.status, command.ProcessState.ExitCode())
		runs, err := os.ReadFile(filepath.Join(dir, "runs"))
		require.NoError(t, err)
		assert.Len(t, runs, c.runs*len("run\n"))
	}
}

// fakeQEMU comes up at its run number $COMES_UP, and then runs no command but says that one has ended.
const fakeQEMU = `#!/bin/sh
for argument; do
	case $argument in
	*id=control,path=*) control=${argument##*path=} ;;
	*id=output,path=*) output=${argument##*path=} ;;
	*id=console,path=*) : >"${argument##*path=}" ;;
	esac
done
echo run >>"$RUNS"
[ "$(wc -l <"$RUNS")" -ge "$COMES_UP" ] || exit 1
echo started >"$control"
echo text >>"$output"
echo "exit 3" >"$control"
`

// TestMachineComesUpLater: a machine that goes down before its command is started once more, unless it has a pool to import.
func TestMachineComesUpLater(t *testing.T) {
	for _, c := range []struct {
		name, comesUp string
		imports       bool
		runs, status  int
	}{
		{"at once", "1", false, 1, 3},
		{"later", "2", false, 2, 3},
		{"too late", "3", false, 2, 125},
		{"imports", "2", true, 1, 125},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			machine := abs(t, "zfs-machine/zfs-machine.sh")
			env := append(os.Environ(), "COWSHED_CACHE="+dir, "TMPDIR="+dir, "PATH="+dir+":"+os.Getenv("PATH"), "RUNS="+dir+"/runs", "COMES_UP="+c.comesUp)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(fakeQEMU), 0o700))
			name := exec.Command("bash", "-c", `set -- path; . "$0" >/dev/null; echo "$machine"`, machine)
			name.Env = env
			at, err := name.Output()
			require.NoError(t, err)
			at = at[:len(at)-1]
			require.NoError(t, os.MkdirAll(string(at), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(string(at), "versions"), nil, 0o600))

			args := []string{"run", "--disk", "1M"}
			if c.imports {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "pool"), nil, 0o600))
				args = append(args, "--pool-image", filepath.Join(dir, "pool"))
			}
			run := exec.Command(machine, append(args, "--", "true")...)
			run.Env = env
			out, _ := run.CombinedOutput()
			assert.Equal(t, c.status, run.ProcessState.ExitCode(), "%s", out)
			if c.status == 3 {
				assert.Contains(t, string(out), "text\n")
			}
			runs, err := os.ReadFile(filepath.Join(dir, "runs"))
			require.NoError(t, err)
			assert.Len(t, runs, c.runs*len("run\n"))
			left, err := filepath.Glob(filepath.Join(dir, "zfs-machine.*"))
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

func abs(t *testing.T, script string) string {
	t.Helper()
	path, err := filepath.Abs(script)
	require.NoError(t, err)
	return path
}
