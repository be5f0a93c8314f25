package zfsctl

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// BeginSize is the size of the record that begins a stream (dmu_replay_record_t). It has the random number of the snapshot, so
// no other part of the stream is equal to it.
const BeginSize = 312

// In the record that begins a stream.
const (
	beginMagic = 0x2F5bacbac // DMU_BACKUP_MAGIC
	atMagic    = 8           // drr_magic
	atVersion  = 16          // drr_versioninfo
	atFromGUID = 48          // drr_fromguid, 0 in a full stream
	substream  = 1           // DMU_SUBSTREAM
	headerType = 0x3         // DMU_GET_STREAM_HDRTYPE
	resuming   = 1 << 22     // DMU_BACKUP_FEATURE_RESUMING, above the two bits of the type
)

// Numbers of zfs_errno_t. ECKSUM is unix.EBADE on Linux.
const (
	errUnknownFeature unix.Errno = 1037 // ZFS_ERR_UNKNOWN_SEND_STREAM_FEATURE
	errTruncated      unix.Errno = 1040 // ZFS_ERR_STREAM_TRUNCATED
	errLargeBlock     unix.Errno = 1041 // ZFS_ERR_STREAM_LARGE_BLOCK_MISMATCH
)

// StreamFault is the fault of a stream that cannot be received.
type StreamFault int

// The faults.
const (
	NoStream       StreamFault = iota + 1 // it is not the output of zfs send
	Compound                              // it holds several snapshots or their properties, as with zfs send -R, -I or -p
	Truncated                             // it ends too early
	Damaged                               // a checksum is wrong
	Malformed                             // a record makes no sense to the kernel
	OtherOrigin                           // it builds on another snapshot than the origin
	LacksOrigin                           // it is incremental, and there is no origin
	NeedlessOrigin                        // it is not incremental, and there is an origin
	Resumed                               // it is the rest of a stream that was broken off
	Unsupported                           // it needs a feature that the pool or the kernel module lacks
)

// StreamError says that a stream cannot be received.
type StreamError struct {
	Fault StreamFault
	Err   error
}

// Error implements error.
func (e *StreamError) Error() string { return e.Err.Error() }

// Unwrap returns the error of the kernel, or that of reading the beginning of the stream.
func (e *StreamError) Unwrap() error { return e.Err }

// faultOfBeginning is the fault of a stream that begins so, 0 for none. The stream may come from a machine with the other
// byte order.
func faultOfBeginning(begin []byte, origin string) StreamFault {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if order.Uint64(begin[atMagic:]) != beginMagic {
			continue
		}
		switch {
		case order.Uint64(begin[atVersion:])&headerType != substream:
			return Compound
		case order.Uint64(begin[atVersion:])&resuming != 0:
			return Resumed
		case order.Uint64(begin[atFromGUID:]) != 0 && origin == "":
			return LacksOrigin
		case order.Uint64(begin[atFromGUID:]) == 0 && origin != "":
			return NeedlessOrigin
		}
		return 0
	}
	return NoStream
}

// faultOfErrno is the fault of a stream at which the kernel fails so, 0 if the stream is not at fault.
func faultOfErrno(err error) StreamFault {
	switch {
	case errors.Is(err, errTruncated):
		return Truncated
	case errors.Is(err, unix.EBADE):
		return Damaged
	case errors.Is(err, unix.EINVAL):
		return Malformed
	case errors.Is(err, unix.ENODEV):
		return OtherOrigin
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, errUnknownFeature), errors.Is(err, errLargeBlock):
		return Unsupported
	}
	return 0
}
