package testfs

import (
	"fmt"
	"os/exec"
	"testing"
	"time"
)

// Lifetime is how long a process of a test lives at the most, whatever its test does with it meanwhile.
const Lifetime = 5 * Patience

// Receive receives from a channel. The test ends if nothing comes for [Patience].
func Receive[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(Patience):
		t.Fatalf("testfs: nothing has come in %s", Patience)
		panic("unreachable")
	}
}

// Result receives the error with which a goroutine ends. It returns another if the goroutine has not ended after [Patience].
func Result(ended <-chan error) error {
	select {
	case err := <-ended:
		return err
	case <-time.After(Patience):
		return fmt.Errorf("testfs: no end in %s", Patience)
	}
}

// Begun waits until a goroutine closes begun. The test ends if the goroutine ends before that, or if it does neither for [Patience].
// Its result remains in ended, which has room for it.
func Begun[T any](t testing.TB, begun <-chan struct{}, ended chan T) {
	t.Helper()
	select {
	case <-begun:
	case result := <-ended:
		ended <- result
		t.Fatalf("testfs: the end has come before the beginning: %v", result)
	case <-time.After(Patience):
		t.Fatalf("testfs: nothing has begun in %s", Patience)
	}
}

// Within calls do, which may end the test. The test ends if do has not returned after [Patience].
func Within(t testing.TB, do func()) {
	t.Helper()
	done := make(chan bool, 1)
	go func() {
		returned := false
		defer func() { done <- returned }()
		do()
		returned = true
	}()
	if !Receive(t, done) {
		t.FailNow()
	}
}

// Start starts a process. It is killed after [Lifetime], which fails the test, or with the end of the test. So reading its output and
// writing its input end too.
func Start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := start(cmd); err != nil {
		t.Fatalf("testfs: %v", err)
	}
	stop := killAfter(t, cmd, Lifetime)
	t.Cleanup(func() {
		stop()
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = wait(t, cmd, Patience)
		}
	})
}

// Wait waits for the end of a process that should end. It kills the process after [Patience], which fails the test.
func Wait(t testing.TB, cmd *exec.Cmd) error {
	t.Helper()
	return wait(t, cmd, Patience)
}

// Run runs a command to its end. It kills the process after [Lifetime], which fails the test.
func Run(t testing.TB, cmd *exec.Cmd) error {
	t.Helper()
	if err := start(cmd); err != nil {
		return err
	}
	return wait(t, cmd, Lifetime)
}

// start starts a process. When it has ended, Wait waits no longer than Patience for others that have its output open.
func start(cmd *exec.Cmd) error {
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = Patience
	}
	return cmd.Start()
}

// wait waits as long as a process lives, and a while longer for others that have its output open.
func wait(t testing.TB, cmd *exec.Cmd, patience time.Duration) error {
	t.Helper()
	defer killAfter(t, cmd, patience)()
	if cmd.WaitDelay == 0 && cmd.Cancel == nil { // with a context, a goroutine of os/exec reads it
		cmd.WaitDelay = patience
	}
	return cmd.Wait()
}

// killAfter kills a process after a time, unless stop is called first. When stop returns, the test knows of that.
func killAfter(t testing.TB, cmd *exec.Cmd, patience time.Duration) (stop func()) {
	killed := make(chan struct{})
	kill := time.AfterFunc(patience, func() {
		defer close(killed)
		if cmd.Process.Kill() == nil {
			t.Errorf("testfs: %s has not ended in %s", cmd, patience)
		}
	})
	return func() {
		if !kill.Stop() {
			<-killed
		}
	}
}
