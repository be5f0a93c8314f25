package testfs

import (
	"bufio"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// InNamespace runs a script in a mount namespace of its own, until the test ends or end is called. propagation is that of
// its mounts (see unshare(1)). It returns the id of the shell after all commands of the script. The shell has nothing open but
// its pipes, so it keeps nothing but mounts in use.
func InNamespace(t testing.TB, propagation, script string, args ...string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation=" + propagation, "--", "sh", "-ec",
		"cd /; " + script + "\necho ready; read wait"}, args...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	Start(t, cmd)
	end = sync.OnceFunc(func() {
		_ = in.Close()
		_ = Wait(t, cmd) // read fails at the end of its input
	})
	t.Cleanup(end)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("testfs: a script in a mount namespace said %q: %v", line, err)
	}
	return cmd.Process.Pid, end
}
