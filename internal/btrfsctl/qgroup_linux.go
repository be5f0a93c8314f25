package btrfsctl

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl request numbers of the quota calls in include/uapi/linux/btrfs.h. The directions of some do not fit their
// calls; they are part of the number all the same.
const (
	iocQuotaCtl          = 0xC0109428
	iocQgroupCreate      = 0x4010942A
	iocQgroupLimit       = 0x8030942B
	iocQuotaRescan       = 0x4040942C
	iocQuotaRescanStatus = 0x8040942D
	iocQuotaRescanWait   = 0x942E
)

// Commands of BTRFS_IOC_QUOTA_CTL (BTRFS_QUOTA_CTL_*).
const (
	quotaCtlEnable       = 1
	quotaCtlDisable      = 2
	quotaCtlEnableSimple = 4
)

// The quota tree and its keys, of btrfs_tree.h.
const (
	quotaTreeObjectID = 8

	qgroupStatusKey = 240
	qgroupInfoKey   = 242
	qgroupLimitKey  = 244
)

// Flags of struct btrfs_qgroup_status_item (BTRFS_QGROUP_STATUS_FLAG_*).
const (
	qgroupStatusOn           = 1 << 0
	qgroupStatusRescan       = 1 << 1
	qgroupStatusInconsistent = 1 << 2
	qgroupStatusSimple       = 1 << 3
)

// ClearLimit in a member of a QgroupLimit takes that limit away. It has this meaning to LimitQgroup only:
// a limit that is given to a new subvolume leaves the flag of the member out instead.
const ClearLimit = ^uint64(0)

// quotaCtlArgs is struct btrfs_ioctl_quota_ctl_args.
type quotaCtlArgs struct {
	cmd    uint64
	status uint64
}

// qgroupCreateArgs is struct btrfs_ioctl_qgroup_create_args.
type qgroupCreateArgs struct {
	create   uint64 // 1 to create, 0 to remove
	qgroupid uint64
}

// qgroupLimitArgs is struct btrfs_ioctl_qgroup_limit_args.
type qgroupLimitArgs struct {
	qgroupid uint64
	limit    QgroupLimit
}

// quotaRescanArgs is struct btrfs_ioctl_quota_rescan_args.
type quotaRescanArgs struct {
	flags    uint64 // of the status call: 1 while a rescan runs
	progress uint64
	_        [6]uint64
}

// EnableQuota turns on classic qgroups on the filesystem of fd: each subvolume is charged for all that it
// references. It commits the transaction and leaves a rescan running, and limits are not reliable until
// that ends. With quotas on already it does nothing, in whichever mode they are. It needs CAP_SYS_ADMIN.
func EnableQuota(fd int) error {
	return ioctl(fd, iocQuotaCtl, unsafe.Pointer(&quotaCtlArgs{cmd: quotaCtlEnable}))
}

// EnableSimpleQuota turns on simple quotas on the filesystem of fd: each extent is charged to the subvolume that
// first allocated it, and extents that exist already to none. It commits the transaction and sets an incompatible
// feature bit, for good: kernels before 6.7 cannot mount the filesystem any more, even when quotas have been turned
// off again. With quotas on already it does nothing, in whichever mode they are. Returns EINVAL if the kernel has no
// simple quotas. It needs CAP_SYS_ADMIN.
func EnableSimpleQuota(fd int) error {
	return ioctl(fd, iocQuotaCtl, unsafe.Pointer(&quotaCtlArgs{cmd: quotaCtlEnableSimple}))
}

// DisableQuota turns quotas off on the filesystem of fd, and forgets all qgroups and limits. It needs
// CAP_SYS_ADMIN.
func DisableQuota(fd int) error {
	return ioctl(fd, iocQuotaCtl, unsafe.Pointer(&quotaCtlArgs{cmd: quotaCtlDisable}))
}

// StartRescan starts counting anew the references of each classic qgroup. Returns EINPROGRESS if a rescan runs,
// EINVAL if quotas are simple, which need none, and ENOTCONN if they are off: Linux 6.1 says EINVAL. It needs
// CAP_SYS_ADMIN.
func StartRescan(fd int) error {
	return ioctl(fd, iocQuotaRescan, unsafe.Pointer(&quotaRescanArgs{}))
}

// RescanRunning reports whether a rescan runs, and the logical address that it has come to. It needs
// CAP_SYS_ADMIN.
func RescanRunning(fd int) (running bool, progress uint64, err error) {
	var args quotaRescanArgs
	err = ioctl(fd, iocQuotaRescanStatus, unsafe.Pointer(&args))
	return args.flags != 0, args.progress, err
}

// WaitRescan waits until no rescan runs; it cannot be told to stop waiting. It needs CAP_SYS_ADMIN.
func WaitRescan(fd int) error {
	return ioctl(fd, iocQuotaRescanWait, nil)
}

// LimitQgroup changes those limits of a qgroup whose flags are set. id 0 stands for the qgroup of the subvolume that
// holds fd. The change is in force at once and durable with the next transaction commit. Returns ENOENT if there is
// no such qgroup, and ENOTCONN (EINVAL on older kernels) if quotas are off. It needs CAP_SYS_ADMIN.
func LimitQgroup(fd int, id uint64, limit QgroupLimit) error {
	return ioctl(fd, iocQgroupLimit, unsafe.Pointer(&qgroupLimitArgs{qgroupid: id, limit: limit}))
}

// CreateQgroup makes a qgroup. Returns EEXIST if the id is taken. It needs CAP_SYS_ADMIN.
func CreateQgroup(fd int, id uint64) error {
	return ioctl(fd, iocQgroupCreate, unsafe.Pointer(&qgroupCreateArgs{create: 1, qgroupid: id}))
}

// RemoveQgroup removes a qgroup. Returns ENOENT if there is no such qgroup. From kernel 6.8, returns EBUSY if its
// subvolume exists or is not yet dropped, or with simple quotas if another still references its extents. It needs
// CAP_SYS_ADMIN.
func RemoveQgroup(fd int, id uint64) error {
	return ioctl(fd, iocQgroupCreate, unsafe.Pointer(&qgroupCreateArgs{qgroupid: id}))
}

// QuotaStatus is struct btrfs_qgroup_status_item, the state of quotas as of the last transaction commit.
type QuotaStatus struct {
	On           bool
	Simple       bool
	Rescan       bool // a rescan runs
	Inconsistent bool
}

// ReadQuotaStatus reads the state of quotas from the quota tree. The zero value: there is no quota tree,
// so they are off. It needs CAP_SYS_ADMIN.
func ReadQuotaStatus(fd int) (QuotaStatus, error) {
	_, data, err := searchOne(fd, quotaTreeObjectID, 0, qgroupStatusKey, 0, 0)
	//nolint:errorlint // searchOne returns the bare errno
	if err == unix.ENOENT {
		return QuotaStatus{}, nil
	}
	if err != nil {
		return QuotaStatus{}, err
	}
	const flagsOffset = 16 // le64 version, generation, flags
	if len(data) < flagsOffset+8 {
		return QuotaStatus{}, unix.EIO
	}
	flags := binary.LittleEndian.Uint64(data[flagsOffset:])
	return QuotaStatus{
		On:           flags&qgroupStatusOn != 0,
		Simple:       flags&qgroupStatusSimple != 0,
		Rescan:       flags&qgroupStatusRescan != 0,
		Inconsistent: flags&qgroupStatusInconsistent != 0,
	}, nil
}

// QgroupUsage reads the size of a qgroup, in bytes and as of the last transaction commit, from the quota tree.
// Returns ENOENT if there is no such qgroup, or if quotas are off. It needs CAP_SYS_ADMIN.
func QgroupUsage(fd int, id uint64) (referenced, exclusive uint64, err error) {
	_, data, err := searchOne(fd, quotaTreeObjectID, 0, qgroupInfoKey, id, id)
	if err != nil {
		return 0, 0, err
	}
	// struct btrfs_qgroup_info_item: le64 generation, rfer, rfer_cmpr, excl, excl_cmpr.
	if len(data) < 40 {
		return 0, 0, unix.EIO
	}
	return binary.LittleEndian.Uint64(data[8:]), binary.LittleEndian.Uint64(data[24:]), nil
}

// QgroupLimits reads the limits of a qgroup from the quota tree. Returns ENOENT if there is no such qgroup, or if
// quotas are off. It needs CAP_SYS_ADMIN.
func QgroupLimits(fd int, id uint64) (QgroupLimit, error) {
	_, data, err := searchOne(fd, quotaTreeObjectID, 0, qgroupLimitKey, id, id)
	if err != nil {
		return QgroupLimit{}, err
	}
	// struct btrfs_qgroup_limit_item: le64 flags, max_rfer, max_excl, rsv_rfer, rsv_excl.
	if len(data) < 40 {
		return QgroupLimit{}, unix.EIO
	}
	return QgroupLimit{
		Flags:   binary.LittleEndian.Uint64(data),
		MaxRfer: binary.LittleEndian.Uint64(data[8:]),
		MaxExcl: binary.LittleEndian.Uint64(data[16:]),
		rsvRfer: binary.LittleEndian.Uint64(data[24:]),
		rsvExcl: binary.LittleEndian.Uint64(data[32:]),
	}, nil
}

// NextQgroup finds the first qgroup whose id is not below least. Returns ENOENT if there is none, or if quotas are
// off. It needs CAP_SYS_ADMIN.
func NextQgroup(fd int, least uint64) (uint64, error) {
	id, _, err := searchOne(fd, quotaTreeObjectID, 0, qgroupInfoKey, least, ^uint64(0))
	return id, err
}

// SubvolumeExists reports whether the filesystem of fd has a subvolume with that id. A destroyed subvolume that is
// not yet dropped counts. It needs CAP_SYS_ADMIN.
func SubvolumeExists(fd int, id uint64) (bool, error) {
	_, _, err := searchOne(fd, rootTreeObjectID, id, rootItemKey, 0, ^uint64(0))
	//nolint:errorlint // searchOne returns the bare errno
	if err == unix.ENOENT {
		return false, nil
	}
	return err == nil, err
}

// rootItemKey is BTRFS_ROOT_ITEM_KEY of btrfs_tree.h.
const rootItemKey = 132
