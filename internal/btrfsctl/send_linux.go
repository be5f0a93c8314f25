package btrfsctl

import (
	"runtime"
	"unsafe"

	"github.com/cowshed/cowshed/internal/sigmask"
)

// SendNoFileData leaves file contents out of a stream: writes are reported by UPDATE_EXTENT commands.
const SendNoFileData = 1 << 0

// sendVersion asks for the stream version in version, capped by the kernel's latest.
const sendVersion = 1 << 3

type sendArgs struct {
	fd           int64
	cloneCount   uint64
	cloneSources unsafe.Pointer // *uint64
	parentRoot   uint64
	flags        uint64
	version      uint32
	_            [28]byte
}

// Send writes the send stream of a read-only subvolume to the descriptor out. The subvolume's root is open as subvol.
// The stream is incremental from the read-only subvolume with id parent unless that is 0. version 0 means 1.
//
// Signals do not reach the thread meanwhile: at a signal the kernel would begin the call anew, and write the stream
// from its start after the part that has been written. It does so all the same after the process was stopped or
// frozen, so a reader verifies the checksums in the stream. The call ends early only if out has no reader.
//
// It needs CAP_SYS_ADMIN in the initial user namespace. Returns EPERM if a subvolume involved is writable, or if the
// privilege is missing. Returns EAGAIN if dedupe runs on a subvolume, and EPIPE if the reader of out has gone.
func Send(subvol, out int, parent uint64, flags uint64, version uint32) error {
	args := &sendArgs{fd: int64(out), parentRoot: parent, flags: flags}
	if version > 1 {
		args.flags |= sendVersion
		args.version = version
	}
	if parent != 0 {
		args.cloneCount = 1
		args.cloneSources = unsafe.Pointer(&args.parentRoot)
	}
	err := sigmask.Do(func() error { return ioctlOnce(subvol, iocSend, unsafe.Pointer(args)) })
	runtime.KeepAlive(args)
	return err
}
