package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestCloneIsOneIoctl counts the system calls that create a child with a limit, on kernels whose snapshot takes the
// limit along: one call that changes anything, and few that read.
func TestCloneIsOneIoctl(t *testing.T) {
	counts, changes, ok := callsOf(t, "clone")
	if !ok {
		return
	}
	assert.Len(t, changes, 1)
	total := 0
	for _, n := range counts {
		total += n
	}
	assert.LessOrEqual(t, total, 11) // two of them lock and unlock the source
}

// TestRemoveIsOneIoctl is the same for the removal of a volume with nothing nested in it. The looks at the mounts of the
// machine depend on these, and are not counted.
func TestRemoveIsOneIoctl(t *testing.T) {
	if _, changes, ok := callsOf(t, "remove"); ok {
		assert.Len(t, changes, 1)
	}
}

// callsOf counts the system calls of an operation by their numbers, and lists the ioctls of btrfs that change something. It
// asserts that no other call changes anything. ok is false on ZFS, whose own tests count instead.
func callsOf(t *testing.T, name string) (counts map[uint64]int, changes []string, ok bool) {
	t.Helper()
	s := systems()[0]
	if s.name != "btrfs-simple" {
		return nil, nil, false
	}
	// The first limit of all turns quotas on, and is noted, once per home.
	root := btrfsRoot(testfs.WithSimpleQuota())(t)
	d := s.open(t, root, user.IdentityMapping{})
	require.NoError(t, d.Create("limited", "", &graphdriver.CreateOpts{StorageOpt: map[string]string{"size": "10M"}}))
	prepare(t, s, root)
	ops := operations(s)
	op := ops[slices.IndexFunc(ops, func(o operation) bool { return o.name == name })]
	// Calls of the Go runtime, at moments of its own choice.
	runtime := []uint64{unix.SYS_FUTEX, unix.SYS_RT_SIGRETURN, unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_NANOSLEEP,
		unix.SYS_MADVISE, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_EPOLL_PWAIT, unix.SYS_SCHED_YIELD,
		unix.SYS_RT_SIGPROCMASK,
		unix.SYS_CLONE, unix.SYS_SIGALTSTACK, unix.SYS_GETTID, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST, unix.SYS_PRCTL, unix.SYS_CLONE3}
	counts = map[uint64]int{}
	_, err := traceStops(victim(t, s, root, op), func(stop *callStop) (hold bool, err error) {
		if !stop.entry || slices.Contains(runtime, stop.call) {
			return false, nil
		}
		counts[stop.call]++
		if stop.call == unix.SYS_IOCTL && changesBtrfs(stop.args[1]) {
			changes = append(changes, fmt.Sprintf("%#x", stop.args[1]))
		}
		return false, nil
	})
	require.NoError(t, err)
	t.Logf("system calls, by number: %v; ioctls that change: %v", counts, changes)
	for _, call := range []int{unix.SYS_WRITE, unix.SYS_MKDIRAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT,
		unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_SYNCFS, unix.SYS_FSYNC} {
		assert.Zero(t, counts[uint64(call)], "call %d", call)
	}
	return counts, changes, true
}

// changesBtrfs reports whether a request of ioctl(2) is one of btrfs (linux/btrfs.h) that is not known to read alone.
func changesBtrfs(request uint64) bool {
	const (
		magic      = 0x94
		treeSearch = 17 // and its second version, by the size
		inoLookup  = 18
		getFlags   = 25
		fsInfo     = 31
		getFeature = 57
		subvolInfo = 60
		rootRefs   = 61
	)
	reads := []uint64{treeSearch, inoLookup, getFlags, fsInfo, getFeature, subvolInfo, rootRefs}
	return request>>8&0xff == magic && !slices.Contains(reads, request&0xff)
}
