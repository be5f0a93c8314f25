package btrfsctl

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const iocEncodedWrite = 0x40809440

// EncodedIO says how the data of an [EncodedWrite] is encoded: members of struct
// btrfs_ioctl_encoded_io_args.
type EncodedIO struct {
	Offset          int64  // in the file, in bytes
	Len             uint64 // bytes of the file that are written
	UnencodedLen    uint64 // bytes of the data when decoded
	UnencodedOffset uint64 // where in the decoded data the bytes for the file begin
	Compression     uint32 // BTRFS_ENCODED_IO_COMPRESSION
	Encryption      uint32 // 0
}

type encodedIOArgs struct {
	iov             unsafe.Pointer // *unix.Iovec
	iovcnt          uint64
	offset          int64
	flags           uint64
	len             uint64
	unencodedLen    uint64
	unencodedOffset uint64
	compression     uint32
	encryption      uint32
	_               [64]byte
}

// EncodedWrite writes compressed data to a file as they are. The kernel stores them without a look inside. data must
// not be empty.
//
// It needs CAP_SYS_ADMIN. Returns ENOTTY if the kernel is older than 5.18. Returns EINVAL if this filesystem cannot
// hold the data as they are, for example because its sectors have another size. Returns ENOSPC likewise, or if the
// filesystem is full.
func EncodedWrite(fd int, io EncodedIO, data []byte) error {
	iov := &unix.Iovec{Base: &data[0]}
	iov.SetLen(len(data))
	args := &encodedIOArgs{
		iov:             unsafe.Pointer(iov),
		iovcnt:          1,
		offset:          io.Offset,
		len:             io.Len,
		unencodedLen:    io.UnencodedLen,
		unencodedOffset: io.UnencodedOffset,
		compression:     io.Compression,
		encryption:      io.Encryption,
	}
	var pinner runtime.Pinner
	pinner.Pin(iov)
	pinner.Pin(iov.Base)
	defer pinner.Unpin()
	return ioctl(fd, iocEncodedWrite, unsafe.Pointer(args))
}

// EnableVerity makes a file read-only and verified by fs-verity (FS_IOC_ENABLE_VERITY, which is not an ioctl of btrfs
// alone). fd must be open for reading, and nobody may have the file open for writing.
//
// Returns EOPNOTSUPP or ENOTTY if the kernel or the filesystem has no fs-verity.
func EnableVerity(fd int, algorithm uint8, blockSize uint32, salt, signature []byte) error {
	args := &unix.FsverityEnableArg{
		Version:        1,
		Hash_algorithm: uint32(algorithm),
		Block_size:     blockSize,
		Salt_size:      uint32(len(salt)),
		Sig_size:       uint32(len(signature)),
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	if len(salt) > 0 {
		pinner.Pin(&salt[0])
		args.Salt_ptr = uint64(uintptr(unsafe.Pointer(&salt[0])))
	}
	if len(signature) > 0 {
		pinner.Pin(&signature[0])
		args.Sig_ptr = uint64(uintptr(unsafe.Pointer(&signature[0])))
	}
	return ioctl(fd, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(args))
}
