//go:build linux

package graphtest

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// recorder is a testing.TB that keeps failures to itself, to see whether the suite finds something.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failed   bool
	messages []string
	cleanups []func()
}

// record runs a test of the suite and returns its messages; failed says whether it failed.
func record(t testing.TB, test Test, c Config) (failed bool, messages string) {
	t.Helper()
	r := &recorder{TB: t}
	r.run(func(t testing.TB) { test.Run(t, c) })
	return r.failed, strings.Join(r.messages, "\n")
}

func (r *recorder) run(f func(t testing.TB)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.runCleanups()
		f(r)
	}()
	<-done
}

// runCleanups goes on when one of them ends the goroutine by FailNow.
func (r *recorder) runCleanups() {
	if len(r.cleanups) == 0 {
		return
	}
	last := len(r.cleanups) - 1
	f := r.cleanups[last]
	r.cleanups = r.cleanups[:last]
	defer r.runCleanups()
	f()
}

func (r *recorder) RunSubtest(_ string, f func(t testing.TB)) {
	sub := &recorder{TB: r.TB}
	sub.run(f)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = r.failed || sub.failed
	r.messages = append(r.messages, sub.messages...)
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
	r.messages = append(r.messages, fmt.Sprintf(format, args...))
}

func (r *recorder) FailNow() {
	r.mu.Lock()
	r.failed = true
	r.mu.Unlock()
	runtime.Goexit()
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	r.FailNow()
}

func (r *recorder) Fatal(args ...any)   { r.Fatalf("%s", fmt.Sprint(args...)) }
func (r *recorder) Error(args ...any)   { r.Errorf("%s", fmt.Sprint(args...)) }
func (r *recorder) Fail()               { r.Errorf("failed") }
func (r *recorder) Log(...any)          {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Cleanup(f func())    { r.cleanups = append(r.cleanups, f) }
