package btrfsctl

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
)

// TestQgroupLayouts holds the arguments of the quota calls to include/uapi/linux/btrfs.h: the sizes that
// their request numbers encode, and the places of their members.
func TestQgroupLayouts(t *testing.T) {
	for name, c := range map[string]struct {
		req  uint32
		nr   uint32
		size uintptr
	}{
		"QUOTA_CTL":           {iocQuotaCtl, 40, unsafe.Sizeof(quotaCtlArgs{})},
		"QGROUP_CREATE":       {iocQgroupCreate, 42, unsafe.Sizeof(qgroupCreateArgs{})},
		"QGROUP_LIMIT":        {iocQgroupLimit, 43, unsafe.Sizeof(qgroupLimitArgs{})},
		"QUOTA_RESCAN":        {iocQuotaRescan, 44, unsafe.Sizeof(quotaRescanArgs{})},
		"QUOTA_RESCAN_STATUS": {iocQuotaRescanStatus, 45, unsafe.Sizeof(quotaRescanArgs{})},
		"QUOTA_RESCAN_WAIT":   {iocQuotaRescanWait, 46, 0},
	} {
		assert.Equal(t, c.nr, c.req&0xff, name)
		assert.Equal(t, uint32(0x94), c.req>>8&0xff, name)
		assert.Equal(t, c.size, uintptr(c.req>>16&(1<<14-1)), name)
	}
	assert.Equal(t, []uintptr{16, 16, 48, 64, 40}, []uintptr{
		unsafe.Sizeof(quotaCtlArgs{}), unsafe.Sizeof(qgroupCreateArgs{}), unsafe.Sizeof(qgroupLimitArgs{}),
		unsafe.Sizeof(quotaRescanArgs{}), unsafe.Sizeof(QgroupLimit{}),
	})
	assert.Equal(t, []uintptr{8, 8, 8, 8}, []uintptr{
		unsafe.Offsetof(quotaCtlArgs{}.status), unsafe.Offsetof(qgroupCreateArgs{}.qgroupid),
		unsafe.Offsetof(qgroupLimitArgs{}.limit), unsafe.Offsetof(quotaRescanArgs{}.progress),
	})
	assert.Equal(t, []uintptr{0, 8, 16, 24, 32}, []uintptr{
		unsafe.Offsetof(QgroupLimit{}.Flags), unsafe.Offsetof(QgroupLimit{}.MaxRfer), unsafe.Offsetof(QgroupLimit{}.MaxExcl),
		unsafe.Offsetof(QgroupLimit{}.rsvRfer), unsafe.Offsetof(QgroupLimit{}.rsvExcl),
	})
}
