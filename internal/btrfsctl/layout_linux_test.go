package btrfsctl

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
)

// TestLayouts holds every argument struct to the size that its request number encodes.
func TestLayouts(t *testing.T) {
	for name, c := range map[string]struct {
		req  uint32
		size uintptr
	}{
		"TREE_SEARCH":         {iocTreeSearch, unsafe.Sizeof(searchArgs{})},
		"INO_LOOKUP":          {iocInoLookup, unsafe.Sizeof(inoLookupArgs{})},
		"SNAP_CREATE_V2":      {iocSnapCreateV2, unsafe.Sizeof(volArgsV2{})},
		"SUBVOL_CREATE_V2":    {iocSubvolCreateV2, unsafe.Sizeof(volArgsV2{})},
		"SNAP_DESTROY_V2":     {iocSnapDestroyV2, unsafe.Sizeof(volArgsV2{})},
		"FS_INFO":             {iocFSInfo, unsafe.Sizeof(fsInfoArgs{})},
		"INO_PATHS":           {iocInoPaths, unsafe.Sizeof(inoPathArgs{})},
		"SEND":                {iocSend, unsafe.Sizeof(sendArgs{})},
		"GET_SUBVOL_INFO":     {iocGetSubvolInfo, unsafe.Sizeof(subvolInfoArgs{})},
		"GET_SUBVOL_ROOTREF":  {iocGetSubvolRootRef, unsafe.Sizeof(rootRefArgs{})},
		"SUBVOL_SYNC_WAIT":    {iocSubvolSyncWait, unsafe.Sizeof(syncWaitArgs{})},
		"SET_RECEIVED_SUBVOL": {iocSetReceivedSubvol, unsafe.Sizeof(receivedSubvolArgs{})},
	} {
		const sizeShift, sizeMask = 16, 1<<14 - 1 // of asm-generic/ioctl.h
		assert.Equal(t, uintptr(c.req>>sizeShift&sizeMask), c.size, name)
		assert.Equal(t, uint32(0x94), c.req>>8&0xff, name)
	}
	assert.Equal(t, uintptr(72), unsafe.Sizeof(qgroupInherit{}), "struct btrfs_qgroup_inherit")
}
