package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// faultsPartEnv names the part of the faults that a run has, such as 1/6.
const faultsPartEnv = "COWSHED_FAULTS_PART"

// fault is the event at an operation's nth step.
type fault struct {
	kind faultKind
	step int // from 1; for fails, among the steps that may fail
	// errno is the error of a failing step.
	errno unix.Errno
	// signal is a harmless one.
	signal unix.Signal
}

type faultKind string

const (
	cancelDuring faultKind = "cancelled during" // the context ends when the step has been asked for, and is not yet done
	cancelAfter  faultKind = "cancelled after"  // the context ends when the step is done, and its result is not yet known
	signalled    faultKind = "signalled during" // a harmless signal arrives when the step has just begun
	fails        faultKind = "fails"            // the step is not done, and says so
	none         faultKind = "nothing happens"  // to count steps
)

func (f fault) String() string {
	switch f.kind {
	case fails:
		return fmt.Sprintf("step %d fails: %v", f.step, f.errno)
	case signalled:
		return fmt.Sprintf("step %d %s by %v", f.step, f.kind, f.signal)
	}
	return fmt.Sprintf("step %d %s", f.step, f.kind)
}

// injected is the outcome of a run.
type injected struct {
	steps int        // between the marks
	calls []stepCall // the steps that were entered
	at    callStop   // where the fault was injected; zero if the operation was through before
	done  bool
}

// stepCall is a system call of an operation.
type stepCall struct {
	call    uint64
	mayFail bool
}

// inject runs cmd and has the fault happen.
func inject(cmd *exec.Cmd, f fault) (injected, error) {
	var r injected
	failing, leaving := 0, 0 // threads in the step
	_, err := traceStops(cmd, func(s *callStop) (hold bool, err error) {
		if !s.entry {
			switch s.tid {
			case failing:
				failing = 0
				return false, setResult(s.tid, f.errno)
			case leaving:
				leaving = 0
				return true, unix.Kill(s.pid, unix.SIGUSR1)
			}
			return false, nil
		}
		if !slices.Contains(steps, s.call) || isRuntimes(s) || f.kind == fails && !mayFail(s) {
			return false, nil
		}
		r.calls = append(r.calls, stepCall{s.call, mayFail(s)})
		if r.steps++; r.steps != f.step {
			return false, nil
		}
		r.at, r.done = *s, true
		switch f.kind {
		case cancelDuring:
			return true, unix.Kill(s.pid, unix.SIGUSR1)
		case cancelAfter:
			leaving = s.tid
		case signalled:
			return false, unix.Tgkill(s.pid, s.tid, f.signal)
		case fails:
			failing = s.tid
			return false, skipCall(s.tid)
		}
		return false, nil
	})
	return r, err
}

// The commit of a btrfs transaction (BTRFS_IOC_START_SYNC, BTRFS_IOC_WAIT_SYNC).
const (
	iocStartSync = 0x80089418
	iocWaitSync  = 0x40089416
)

// mayFail reports whether a call can be made to fail by itself. A commit cannot: if it fails, the filesystem has
// aborted, is read-only, and has lost the uncommitted changes. Nor can calls that never fail.
func mayFail(s *callStop) bool {
	switch s.call {
	case unix.SYS_CLOSE, unix.SYS_WAITID:
		return false
	case unix.SYS_IOCTL:
		return s.args[1] != iocStartSync && s.args[1] != iocWaitSync
	}
	return true
}

// isRuntimes reports whether a call is the one by which the Go runtime wakes its poller. A thread that is held in it would
// keep the scheduler from running the goroutine that acknowledges.
func isRuntimes(s *callStop) bool {
	if s.call != unix.SYS_WRITE {
		return false
	}
	target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", s.pid, s.args[0]))
	return strings.HasPrefix(target, "anon_inode:")
}

// skipCall replaces the call that a thread is about to make by a call that does nothing.
func skipCall(tid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	regs.Orig_rax = ^uint64(0)
	return unix.PtraceSetRegs(tid, &regs)
}

// setResult makes the call that a thread has made return an error.
func setResult(tid int, errno unix.Errno) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	regs.Rax = -uint64(errno)
	return unix.PtraceSetRegs(tid, &regs)
}

// TestFaults has a step of an operation fail, the context end around it, and signals arrive in it. It compares the
// operation's answer with the state: after success the new state, after a failure the former, and in either case
// nothing besides. A failed operation can be repeated in the same process. If a step of a removal fails,
// docs/reference/on-disk-format.md lists the remains until the home is next opened.
//
// Long, every step of every operation; on ZFS, whose machine is slow, every external step, and a choice of the others.
// Else a choice of all, always the same for the same steps, so that a failure is about the commit. COWSHED_FAULTS_SEED makes
// another choice: a number, or "random". The choice of one operation does not depend on the others. COWSHED_FAULTS_PART has a
// part of the faults alone, such as 1/6.
func TestFaults(t *testing.T) {
	t.Parallel()
	seed := faultsSeed(t)
	inEachOwn(t, func(t *testing.T, s system) {
		if s.name != "btrfs-total" { // as btrfs-classic, except the scope of limits
			faultsIn(t, s, seed)
		}
	})
}

// TestFaultsShared is TestFaults with shared roots.
func TestFaultsShared(t *testing.T) {
	t.Parallel()
	seed := faultsSeed(t)
	inEachShared(t, func(t *testing.T, s system) { faultsIn(t, s, seed) })
}

func faultsSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(1)
	switch s := os.Getenv("COWSHED_FAULTS_SEED"); s {
	case "":
	case "random":
		seed = rand.Uint64()
	default:
		_, err := fmt.Sscanf(s, "%v", &seed)
		require.NoError(t, err)
	}
	t.Logf("COWSHED_FAULTS_SEED=%#x", seed)
	return seed
}

// faultsRandom has the choices about one thing, which are the same whatever else the run tests.
func faultsRandom(seed uint64, about string) *rand.Rand {
	return rand.New(rand.NewPCG(seed, hashOf(about)))
}

func hashOf(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	return h.Sum64()
}

// faultsPart returns the faults of an operation that belong to the part of the run. Each part has all kinds of faults, and
// a fault is in the same part however many there are.
func faultsPart(t *testing.T, operation string, faults []fault) []fault {
	t.Helper()
	first, parts := partFrom(t, faultsPartEnv)
	return slices.DeleteFunc(faults, func(f fault) bool {
		return faultsRandom(0, operation+": "+f.String()).IntN(parts) != first
	})
}

// TestFaultsParts: together the parts have each fault once, and each has all kinds.
func TestFaultsParts(t *testing.T) {
	var all []fault
	for step := range 40 {
		all = append(all, faultsOfStep(step+1)...)
		all = append(all, failuresOfStep(step+1)...)
	}
	for _, parts := range []int{1, 2, 6, 7, 8} {
		found := map[string]int{}
		for part := range parts {
			t.Setenv(faultsPartEnv, fmt.Sprintf("%d/%d", part+1, parts))
			kinds := map[string]bool{}
			for _, f := range faultsPart(t, "clone", slices.Clone(all)) {
				found[f.String()]++
				kinds[fmt.Sprint(f.kind, f.errno, f.signal)] = true
			}
			assert.Len(t, kinds, len(faultsOfStep(1))+len(failuresOfStep(1)), "%d of %d", part+1, parts)
		}
		assert.Len(t, found, len(all))
		for f, times := range found {
			assert.Equal(t, 1, times, f)
		}
	}
}

// faultsIn is TestFaults of one system.
func faultsIn(t *testing.T, s system, seed uint64) {
	t.Helper()
	root := s.root(t)
	operations := faultOperations(s)
	// The first limit turns quotas on, which takes steps of its own.
	prepare(t, s, root)
	runFaulty(t, s, root, operations[0], fault{kind: none})
	if s.slow() {
		rng := faultsRandom(seed, s.name)
		rng.Shuffle(len(operations), func(i, j int) { operations[i], operations[j] = operations[j], operations[i] })
		operations = operations[:3]
	}
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) { faultsOf(t, s, root, op, faultsRandom(seed, s.name+"/"+op.name)) })
	}
}

func faultsOf(t *testing.T, s system, root string, op faultOperation, rng *rand.Rand) {
	run := func(f fault) (injected, faultResult) {
		prepare(t, s, root)
		return runFaulty(t, s, root, op, f)
	}
	quiet, result := run(fault{kind: none})
	require.Empty(t, result.Error)
	require.Positive(t, quiet.steps)

	faults, inner := faultsOfSteps(quiet.calls, func(call uint64) bool {
		return s.driver == "zfs" && !slices.Contains(externalCalls, call)
	})
	choice := func(of []fault, most int) []fault {
		rng.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		return of[:min(most, len(of))]
	}
	switch {
	case testfs.Long():
		faults = append(faults, choice(inner, 20)...)
	case s.driver == "zfs" || s.shared:
		faults = choice(append(faults, inner...), 2)
	default:
		faults = choice(faults, 4)
	}
	faults = faultsPart(t, op.name, faults)
	happened := 0
	for _, f := range faults {
		r, result := run(f)
		if r.done {
			happened++
		}
		if f.kind == signalled && result.Error != "" {
			result.Problems = append(result.Problems, "a harmless signal made it fail")
		}
		if f.kind == fails && result.Error != "" {
			result.Problems = without(result.Problems, op.broken)
		}
		if s.shared {
			result.Problems = without(result.Problems, noteLeft)
		}
		if s.shared && f.kind == fails {
			result.Problems = without(result.Problems, scratchLeft)
		}
		if s.driver == "zfs" && f.kind == fails {
			result.Problems = without(result.Problems, intentLeft)
		}
		if len(result.Problems) > 0 {
			t.Errorf("%v (of %d, call %d with %#x): answer %q:\n\t%s", f, quiet.steps, r.at.call, r.at.args, result.Error, strings.Join(result.Problems, "\n\t"))
		}
	}
	t.Logf("%d steps; %d of %d faults happened", quiet.steps, happened, len(faults))
	if len(faults) >= severalFaults { // the steps of the end are not in each run
		require.Positive(t, happened, "faults that happened")
	}
}

// severalFaults are so many that one of them happens in any case.
const severalFaults = 4

// faultsOfSteps are all that can happen in the steps of a run. inner are those of steps for which isInner returns true: a choice
// is made of them in any case.
func faultsOfSteps(steps []stepCall, isInner func(call uint64) bool) (faults, inner []fault) {
	failing := 0
	for i, s := range steps {
		all := faultsOfStep(i + 1)
		if s.mayFail {
			failing++
			all = append(all, failuresOfStep(failing)...)
		}
		if isInner(s.call) {
			inner = append(inner, all...)
		} else {
			faults = append(faults, all...)
		}
	}
	return faults, inner
}

// TestFaultsOfSteps: each failure is of a step that may fail.
func TestFaultsOfSteps(t *testing.T) {
	calls := []stepCall{{unix.SYS_OPENAT, true}, {unix.SYS_CLOSE, false}, {unix.SYS_FSYNC, true}, {unix.SYS_CLOSE, false}}
	faults, inner := faultsOfSteps(calls, func(call uint64) bool { return call == unix.SYS_FSYNC })
	counts := func(faults []fault) map[string]int {
		n := make(map[string]int)
		for _, f := range faults {
			n[fmt.Sprintf("%s %d", f.kind, f.step)]++
		}
		return n
	}
	assert.Equal(t, map[string]int{
		"cancelled during 1": 1, "cancelled after 1": 1, "signalled during 1": 2, "fails 1": 3,
		"cancelled during 2": 1, "cancelled after 2": 1, "signalled during 2": 2,
		"cancelled during 4": 1, "cancelled after 4": 1, "signalled during 4": 2,
	}, counts(faults))
	assert.Equal(t, map[string]int{"cancelled during 3": 1, "cancelled after 3": 1, "signalled during 3": 2, "fails 2": 3}, counts(inner))
}

// externalCalls are the system calls by which an operation asks something of the filesystem or changes it.
var externalCalls = []uint64{
	unix.SYS_IOCTL, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_UNLINKAT, unix.SYS_FSYNC,
}

// faultsOfStep are all that can happen in a step, whether it may fail or not.
func faultsOfStep(step int) []fault {
	return []fault{
		{kind: cancelDuring, step: step}, {kind: cancelAfter, step: step},
		{kind: signalled, step: step, signal: unix.SIGURG}, {kind: signalled, step: step, signal: unix.SIGWINCH},
	}
}

// failuresOfStep are the failures of a step that may fail. Other steps are not counted.
func failuresOfStep(step int) (all []fault) {
	for _, errno := range []unix.Errno{unix.EIO, unix.ENOSPC, unix.EINTR} {
		all = append(all, fault{kind: fails, step: step, errno: errno})
	}
	return all
}

// runFaulty runs the operation in a process of its own with a fault, and checks the state after it.
func runFaulty(t *testing.T, s system, root string, op faultOperation, f fault) (injected, faultResult) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFaultyVictim$", "-test.count=1")
	cmd.Env = append(os.Environ(), victimSystemEnv+"="+s.name, victimRootEnv+"="+root, victimOperationEnv+"="+op.name)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	r, err := inject(cmd, f)
	require.NoError(t, err, "%v, call %d with %#x: %s", f, r.at.call, r.at.args, out.String())
	var result faultResult
	_, line, found := strings.Cut(out.String(), resultMark)
	require.True(t, found, "%v: %s", f, out.String())
	require.NoError(t, json.NewDecoder(strings.NewReader(line)).Decode(&result))

	d, err := s.tryOpen(root, user.IdentityMapping{})
	require.NoError(t, err)
	assertNothingLeft(t, s, root, layerIDs(t, d))
	require.NoError(t, d.Cleanup())
	return r, result
}

const resultMark = "result: "

// faultResult is a victim's report.
type faultResult struct {
	Error    string   // of the operation; "" if it says that it was successful
	Problems []string // how the state differs from the one after that answer
}

// homeState is the state of a store, in lines that explain a surplus or missing entry.
type homeState struct{ volumes, left []string }

func stateOf(t *testing.T, s system, d lister, root string) (state homeState) {
	t.Helper()
	var ids []string // of volumes, on btrfs
	isVolume := make(map[string]bool)
	for v, err := range d.Volumes(t.Context()) {
		require.NoError(t, err)
		ids = append(ids, v.Details["SubvolumeID"])
		isVolume[v.Name] = true
		state.volumes = append(state.volumes, fmt.Sprintf("volume %s of %q, sealed %v, limit %v", v.Name, v.Parent, v.Sealed, v.Limit))
	}
	home := filepath.Join(root, s.driver)
	for _, dir := range []string{"subvolumes", "staging", "views", "removing", "intents", "graph", "shared", "roots"} {
		entries, err := os.ReadDir(filepath.Join(home, dir))
		if !errors.Is(err, fs.ErrNotExist) {
			require.NoError(t, err)
		}
		for _, entry := range entries {
			if dir == "subvolumes" && !strings.HasPrefix(entry.Name(), ".") || dir == "shared" && isVolume[entry.Name()] {
				continue // a volume, or the note about one
			}
			// The mark of a qgroup stays until the kernel has dropped the destroyed subvolume.
			mark, isMark := strings.CutPrefix(entry.Name(), "qgroup-")
			if !isMark || slices.Contains(ids, mark) {
				state.left = append(state.left, dir+"/"+withoutRandom(entry.Name()))
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, root+"/") && point != filepath.Join(home, "roots") {
			state.left = append(state.left, "mount on "+point)
		}
	}
	if s.driver == "zfs" {
		out, err := exec.Command("zfs", "list", "-H", "-o", "name,clones", "-t", "filesystem,snapshot", "-r", root).Output()
		require.NoError(t, err)
		for line := range strings.Lines(string(out)) {
			name, clones, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			if !strings.HasSuffix(name, "@layer") && strings.ContainsAny(name, "@ ") && !takenForClone(name, clones) {
				state.left = append(state.left, "dataset "+withoutRandom(name))
			}
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		// The descriptor that reads this directory is gone, and those of the runtime do not count.
		if err == nil && !strings.HasPrefix(target, "anon_inode:") && !strings.HasPrefix(target, "/proc/") {
			state.left = append(state.left, "descriptor of "+withoutRandom(target))
		}
	}
	slices.Sort(state.volumes)
	slices.Sort(state.left)
	return state
}

// withoutRandom cuts off the random part of a temporary name.
func withoutRandom(name string) string {
	name, _, _ = strings.Cut(name, "~")
	return name
}

// intentLeft begins the differences that may remain on ZFS if a step fails: the record of a volume that was about to be made is
// in nobody's way, and the next start deletes it.
var intentLeft = []string{"left: intents/"}

// differences lists the lines that only one of the states has.
func differences(before, after []string) (all []string) {
	after = slices.Clone(after)
	for _, line := range before {
		if i := slices.Index(after, line); i >= 0 {
			after = slices.Delete(after, i, i+1)
		} else {
			all = append(all, "lost: "+line)
		}
	}
	for _, line := range after {
		all = append(all, "left: "+line)
	}
	return all
}

// without leaves out the lines that begin like one of these.
func without(lines, beginnings []string) []string {
	return slices.DeleteFunc(lines, func(line string) bool {
		return slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(line, b) })
	})
}

// settled waits for a state that wanted accepts, and returns the problems of the last state: cancelled operations may need a
// moment to end. It does not wait long for the end of problems that begin like one of those that may remain.
func settled(look func() homeState, wanted func(homeState) []string, mayRemain []string) (problems []string) {
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		waited := time.Since(begun)
		problems = wanted(look())
		switch {
		case len(problems) == 0, waited > testfs.Patience:
			return problems
		case waited > 2*time.Second && len(without(slices.Clone(problems), mayRemain)) == 0:
			return problems
		}
	}
}

// TestFaultyVictim is not a test: it is the process that TestFaults runs.
func TestFaultyVictim(t *testing.T) {
	name := os.Getenv(victimOperationEnv)
	if name == "" {
		return
	}
	s := systemNamed(os.Getenv(victimSystemEnv))
	root := os.Getenv(victimRootEnv)
	d, err := s.tryOpen(root, user.IdentityMapping{})
	require.NoError(t, err)
	all := faultOperations(s)
	op := all[slices.IndexFunc(all, func(o faultOperation) bool { return o.name == name })]
	if op.prepare != nil {
		require.NoError(t, op.prepare(t.Context(), d))
	}
	look := func() homeState { return stateOf(t, s, d.Backend(), root) }
	before := look()
	ctx := cancelledBySignal(t)

	markStep()
	err = op.run(ctx, d)
	markStep()

	var result faultResult
	if err != nil {
		result.Error = err.Error()
		mayRemain := noteLeft
		if !errors.Is(err, context.Canceled) {
			mayRemain = slices.Concat(noteLeft, intentLeft, op.broken)
		}
		result.Problems = settled(look, func(after homeState) []string {
			return append(differences(before.volumes, after.volumes), differences(before.left, after.left)...)
		}, mayRemain)
		if op.again != nil {
			err = op.again(t.Context(), d)
		} else {
			err = op.run(t.Context(), d)
		}
		if err != nil {
			result.Problems = append(result.Problems, "cannot be repeated: "+err.Error())
		}
	} else {
		result.Problems = settled(look, func(after homeState) []string {
			return without(differences(before.left, after.left), op.leaves)
		}, noteLeft)
	}
	if err == nil {
		if err := op.verify(t.Context(), d); err != nil {
			result.Problems = append(result.Problems, "is not done: "+err.Error())
		}
	}
	if err := d.Cleanup(); err != nil {
		result.Problems = append(result.Problems, "closing: "+err.Error())
	}
	line, err := json.Marshal(result)
	require.NoError(t, err)
	fmt.Println("\n" + resultMark + string(line))
}
