package e2e

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestCloneIsOneIoctl counts the system calls that create a child with a limit, on kernels whose snapshot takes the
// limit along: one call that changes anything, and few that read.
func TestCloneIsOneIoctl(t *testing.T) {
	s := systems()[0]
	if s.name != "btrfs-simple" {
		return // ZFS counts processes instead, in its own tests
	}
	root := btrfsRoot(testfs.WithSimpleQuota())(t) // the first limit of all turns them on, once per filesystem
	prepare(t, s, root)
	ops := operations(s)
	clone := ops[slices.IndexFunc(ops, func(o operation) bool { return o.name == "clone" })]
	// Calls of the Go runtime, at moments of its own choice.
	runtime := []uint64{unix.SYS_FUTEX, unix.SYS_RT_SIGRETURN, unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_NANOSLEEP,
		unix.SYS_MADVISE, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_EPOLL_PWAIT, unix.SYS_SCHED_YIELD,
		unix.SYS_RT_SIGPROCMASK,
		unix.SYS_CLONE, unix.SYS_SIGALTSTACK, unix.SYS_GETTID, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST, unix.SYS_PRCTL, unix.SYS_CLONE3}
	counts := map[uint64]int{}
	total := 0
	_, err := trace(victim(t, s, root, clone), func(call uint64) bool {
		if !slices.Contains(runtime, call) {
			counts[call]++
			total++
		}
		return false
	})
	require.NoError(t, err)
	t.Logf("%d system calls, by number: %v", total, counts)
	for _, call := range []int{unix.SYS_WRITE, unix.SYS_MKDIRAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT,
		unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_SYNCFS, unix.SYS_FSYNC} {
		assert.Zero(t, counts[uint64(call)], "call %d", call)
	}
	assert.LessOrEqual(t, total, 11) // two of them lock and unlock the source
}
