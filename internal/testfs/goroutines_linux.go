package testfs

import (
	"runtime"
	"slices"
	"strings"
)

// goroutineIDs returns the ids of all goroutines of the process.
func goroutineIDs() map[string]bool {
	ids := make(map[string]bool)
	for id := range stacks() {
		ids[id] = true
	}
	return ids
}

// newGoroutines returns the stacks of goroutines that are not in before, without those that the runtime and
// the testing package start on their own account.
func newGoroutines(before map[string]bool) []string {
	var added []string
	for id, stack := range stacks() {
		own := strings.Contains(stack, "testing.(*M).startAlarm") ||
			strings.Contains(stack, "os/signal.signal_recv") ||
			strings.Contains(stack, "runtime.ensureSigM") ||
			strings.Contains(stack, "testing.runFuzzing") ||
			strings.Contains(stack, "testing.tRunner.func") && strings.Contains(stack, "newGoroutines")
		if !before[id] && !own {
			added = append(added, stack)
		}
	}
	slices.Sort(added)
	return added
}

// stacks returns the stack of each goroutine by its id.
func stacks() map[string]string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		// "goroutine 12 [running]:"
		fields := strings.Fields(stack)
		if len(fields) > 1 && fields[0] == "goroutine" {
			all[fields[1]] = stack
		}
	}
	return all
}
