package zfsctl

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"unsafe"
)

// Numbers of requests (zfs_ioc_t).
const (
	iocObjsetStats      = 0x5a12
	iocDatasetListNext  = 0x5a14
	iocSnapshotListNext = 0x5a15
	iocSetProp          = 0x5a16
	iocCreate           = 0x5a17
	iocDestroy          = 0x5a18
	iocRollback         = 0x5a19
	iocRename           = 0x5a1a
	iocPromote          = 0x5a22
	iocSnapshot         = 0x5a23
	iocPoolGetProps     = 0x5a27
	iocDiff             = 0x5a36
	iocDestroySnaps     = 0x5a3b
	iocLogHistory       = 0x5a3f
	iocSendNew          = 0x5a40
	iocClone            = 0x5a42
	iocRecvNew          = 0x5a46
	iocPoolSync         = 0x5a47
	iocChannelProgram   = 0x5a48
)

// MaxName is the most bytes of a name. In the kernel a NUL byte follows (ZFS_MAX_DATASET_NAME_LEN).
const MaxName = 255

// command is struct zfs_cmd.
type command [13744]byte

// Offsets in struct zfs_cmd.
const (
	atName       = 0     // zc_name, of 4096 bytes
	atSource     = 4096  // zc_nvlist_src
	atSourceSize = 4104  // zc_nvlist_src_size
	atDest       = 4112  // zc_nvlist_dst
	atDestSize   = 4120  // zc_nvlist_dst_size
	atDestFilled = 4128  // zc_nvlist_dst_filled
	atValue      = 4144  // zc_value, of 8192 bytes
	atCookie     = 12616 // zc_cookie
	atStats      = 12704 // zc_objset_stats
	atSimple     = 13668 // zc_simple

	// In dmu_objset_stats_t.
	statType   = 24 // dds_type
	statOrigin = 31 // dds_origin, of MaxName+1 bytes
)

var native = binary.NativeEndian

func newCommand(r request) *command {
	var c command
	copy(c[atName:], r.name)
	copy(c[atValue:], r.value)
	native.PutUint64(c[atCookie:], r.cookie)
	if r.simple {
		c[atSimple] = 1
	}
	return &c
}

// setInput makes the kernel read b, which the pinner keeps where it is.
func (c *command) setInput(pinner *runtime.Pinner, b []byte) {
	if len(b) > 0 {
		pinner.Pin(&b[0])
		native.PutUint64(c[atSource:], uint64(uintptr(unsafe.Pointer(&b[0]))))
		native.PutUint64(c[atSourceSize:], uint64(len(b)))
	}
}

// setOutput makes the kernel write its answer to b. Without b it makes none.
func (c *command) setOutput(pinner *runtime.Pinner, b []byte) {
	if len(b) == 0 {
		return
	}
	pinner.Pin(&b[0])
	native.PutUint64(c[atDest:], uint64(uintptr(unsafe.Pointer(&b[0]))))
	native.PutUint64(c[atDestSize:], uint64(len(b)))
}

// filled reports whether there is an answer.
func (c *command) filled() bool { return native.Uint32(c[atDestFilled:]) != 0 }

func (c *command) name() string   { return text(c[atName:][:MaxName+1]) }
func (c *command) cookie() uint64 { return native.Uint64(c[atCookie:]) }

// text returns a string of C.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
