package testfs

import (
	"bytes"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestPatienceEnds: each wait for a goroutine ends, and fails its test.
func TestPatienceEnds(t *testing.T) {
	for name, do := range map[string]func(t testing.TB){
		"receive": func(t testing.TB) { Receive(t, make(chan int)) },
		"begun":   func(t testing.TB) { Begun(t, make(chan struct{}), make(chan error, 1)) },
		"ended": func(t testing.TB) {
			ended := make(chan error, 1)
			ended <- nil
			Begun(t, make(chan struct{}), ended)
		},
		"within": func(t testing.TB) { Within(t, func() { time.Sleep(2 * Patience) }) },
		"result": func(t testing.TB) { t.Errorf("%v", Result(make(chan error))) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{TB: t}
				begin := time.Now()
				r.run(do)
				assert.Len(t, r.failures, 1)
				assert.LessOrEqual(t, time.Since(begin), Patience)
				time.Sleep(Patience) // until the goroutine has ended
			})
		})
	}
}

// TestWithin: an assertion that fails in another goroutine ends the test.
func TestWithin(t *testing.T) {
	Within(t, func() {})
	went := false
	r := &recorder{TB: t}
	r.run(func(t testing.TB) {
		Within(t, func() { t.Fatalf("as require does") })
		went = true
	})
	assert.Equal(t, []string{"as require does", "FailNow"}, r.failures)
	assert.False(t, went)
}

// TestWaitForProcess: a process that does not end is killed, and fails the test. Another process that has its output open keeps nobody
// waiting.
func TestWaitForProcess(t *testing.T) {
	r := &recorder{TB: t}
	r.run(func(tb testing.TB) {
		cmd := exec.Command("sleep", "1000")
		require.NoError(t, cmd.Start())
		assert.False(t, Ended(tb, cmd))
		require.Error(t, wait(tb, cmd, time.Millisecond))
	})
	require.Len(t, r.failures, 1)
	assert.Contains(t, r.failures[0], "sleep 1000 has not ended")

	cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!; exit 3")
	var out bytes.Buffer
	cmd.Stdout = &out
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return Ended(t, cmd) }, Patience, time.Millisecond)
	var exit *exec.ExitError
	require.ErrorAs(t, wait(t, cmd, time.Second), &exit)
	assert.Equal(t, 3, exit.ExitCode())
	left, err := strconv.Atoi(string(bytes.TrimSpace(out.Bytes())))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(left, unix.SIGTERM))

	r = &recorder{TB: t}
	cmd = exec.Command("sleep", "1000")
	r.run(func(tb testing.TB) { Start(tb, cmd) })
	assert.Empty(t, r.failures)
	assert.Equal(t, -1, cmd.ProcessState.ExitCode(), "it ends with the test")
	require.NoError(t, Run(t, exec.Command("true")))
	require.Error(t, Run(t, exec.Command("false")))
	require.ErrorIs(t, Run(t, &exec.Cmd{Path: filepath.Join(t.TempDir(), "none")}), fs.ErrNotExist)
}
