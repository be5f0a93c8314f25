package btrfsctl

import (
	"fmt"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxSubvolName is BTRFS_SUBVOL_NAME_MAX less the terminating NUL.
const maxSubvolName = 4039

// FirstFreeObjectID is the inode number of the root directory of every subvolume
// (BTRFS_FIRST_FREE_OBJECTID).
const FirstFreeObjectID = 256

// FSTreeObjectID is the id of a filesystem's top-level subvolume (BTRFS_FS_TREE_OBJECTID).
const FSTreeObjectID = 5

// Flags of btrfs_ioctl_vol_args_v2 and of a subvolume.
const (
	subvolReadOnly      = 1 << 1
	subvolQgroupInherit = 1 << 2
)

// Flags of btrfs_qgroup_limit: which of its members are in force.
const (
	LimitMaxRfer = 1 << 0
	LimitMaxExcl = 1 << 1
)

const qgroupInheritSetLimits = 1

// QgroupLimit is struct btrfs_qgroup_limit. A value of ^uint64(0) clears a limit.
type QgroupLimit struct {
	Flags   uint64
	MaxRfer uint64 // bytes
	MaxExcl uint64 // bytes
	rsvRfer uint64
	rsvExcl uint64
}

// NewLimit is the limit that a subvolume is made with: on the bytes that it may reference, and on those that it alone may.
// 0 is no limit, and without either there is no QgroupLimit.
func NewLimit(maxReferenced, maxExclusive uint64) *QgroupLimit {
	l := QgroupLimit{MaxRfer: maxReferenced, MaxExcl: maxExclusive}
	if maxReferenced != 0 {
		l.Flags |= LimitMaxRfer
	}
	if maxExclusive != 0 {
		l.Flags |= LimitMaxExcl
	}
	if l.Flags == 0 {
		return nil
	}
	return &l
}

// qgroupInherit is struct btrfs_qgroup_inherit without the trailing list of qgroups.
type qgroupInherit struct {
	flags         uint64
	numQgroups    uint64
	numRefCopies  uint64
	numExclCopies uint64
	limit         QgroupLimit
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	size    uint64         // of *inherit; shares its place with devid and unused
	inherit unsafe.Pointer // *qgroupInherit
	_       [2]uint64
	name    [maxSubvolName + 1]byte
}

func (a *volArgsV2) setName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("subvolume name %q: %w", name, unix.EINVAL)
	}
	copy(a.name[:], name)
	return nil
}

func (a *volArgsV2) setLimit(limit *QgroupLimit) {
	if limit == nil {
		return
	}
	inherit := &qgroupInherit{flags: qgroupInheritSetLimits, limit: *limit}
	a.flags |= subvolQgroupInherit
	a.size = uint64(unsafe.Sizeof(*inherit))
	a.inherit = unsafe.Pointer(inherit)
}

// CreateSubvolume makes an empty subvolume name in the directory dirfd. A limit is in force from the
// start; nil sets none. It becomes durable with the next transaction commit.
func CreateSubvolume(dirfd int, name string, limit *QgroupLimit) error {
	args := &volArgsV2{}
	if err := args.setName(name); err != nil {
		return err
	}
	args.setLimit(limit)
	return ioctl(dirfd, iocSubvolCreateV2, unsafe.Pointer(args))
}

// Snapshot makes name in the directory dirfd a snapshot of the subvolume whose root is open as source.
// It commits the transaction, so the snapshot is durable when it returns. With simple quotas a limit is
// in force from the start; with classic ones the kernel ignores it and copies the source's.
func Snapshot(dirfd int, name string, source int, readOnly bool, limit *QgroupLimit) error {
	args := &volArgsV2{fd: int64(source)}
	if err := args.setName(name); err != nil {
		return err
	}
	if readOnly {
		args.flags |= subvolReadOnly
	}
	args.setLimit(limit)
	return ioctl(dirfd, iocSnapCreateV2, unsafe.Pointer(args))
}

// DestroySubvolume unlinks the subvolume name from the directory dirfd. Its space comes back later, when the kernel's
// cleaner has run. Returns ENOTEMPTY if a subvolume is nested inside, and EPERM if it is being sent, or is the
// default subvolume.
func DestroySubvolume(dirfd int, name string) error {
	args := &volArgsV2{}
	if err := args.setName(name); err != nil {
		return err
	}
	return ioctl(dirfd, iocSnapDestroyV2, unsafe.Pointer(args))
}

// SetReadOnly makes the subvolume open as fd read-only or writable. Descriptors that are open for
// writing go on writing. It becomes durable with the next transaction commit.
func SetReadOnly(fd int, readOnly bool) error {
	var flags uint64
	if err := ioctl(fd, iocSubvolGetFlags, unsafe.Pointer(&flags)); err != nil {
		return err
	}
	if (flags&subvolReadOnly != 0) == readOnly {
		return nil
	}
	flags ^= subvolReadOnly
	return ioctl(fd, iocSubvolSetFlags, unsafe.Pointer(&flags))
}

// UUID is a subvolume's or filesystem's UUID; the zero value stands for none.
type UUID [16]byte

// String formats u as usual, in lower case.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Subvolume is the kernel's description of a subvolume (struct btrfs_ioctl_get_subvol_info_args).
type Subvolume struct {
	ID           uint64
	ParentID     uint64 // the subvolume that it is linked in; 0 if it is being removed
	DirID        uint64 // inode number of the directory in ParentID that it is linked in
	Name         string // its name there
	UUID         UUID
	ParentUUID   UUID // of the subvolume that it is a snapshot of
	ReceivedUUID UUID
	Generation   uint64
	OGeneration  uint64 // generation in which it was made
	ReadOnly     bool
	Created      time.Time
}

type timespec struct {
	sec  uint64
	nsec uint32
	_    uint32
}

type subvolInfoArgs struct {
	treeid       uint64
	name         [256]byte
	parentID     uint64
	dirid        uint64
	generation   uint64
	flags        uint64
	uuid         UUID
	parentUUID   UUID
	receivedUUID UUID
	ctransid     uint64
	otransid     uint64
	stransid     uint64
	rtransid     uint64
	ctime        timespec
	otime        timespec
	stime        timespec
	rtime        timespec
	_            [8]uint64
}

// Info describes the subvolume that holds the inode open as fd. It needs no privilege (kernel 4.18).
func Info(fd int) (Subvolume, error) {
	var args subvolInfoArgs
	if err := ioctl(fd, iocGetSubvolInfo, unsafe.Pointer(&args)); err != nil {
		return Subvolume{}, err
	}
	return Subvolume{
		ID:           args.treeid,
		ParentID:     args.parentID,
		DirID:        args.dirid,
		Name:         unix.ByteSliceToString(args.name[:]),
		UUID:         args.uuid,
		ParentUUID:   args.parentUUID,
		ReceivedUUID: args.receivedUUID,
		Generation:   args.generation,
		OGeneration:  args.otransid,
		ReadOnly:     args.flags&1 != 0, // BTRFS_ROOT_SUBVOL_RDONLY, unlike the flag of the ioctls
		Created:      time.Unix(int64(args.otime.sec), int64(args.otime.nsec)),
	}, nil
}

// RootRef is a subvolume linked inside another.
type RootRef struct {
	ID    uint64 // of the nested subvolume
	DirID uint64 // inode number of the directory that it is linked in
}

const maxRootRefs = 255

type rootRefArgs struct {
	minTreeid uint64
	refs      [maxRootRefs]RootRef
	n         uint8
	_         [7]byte
}

// Nested lists the subvolumes linked directly inside the subvolume whose root is open as fd.
func Nested(fd int) ([]RootRef, error) {
	var all []RootRef
	args := &rootRefArgs{}
	for {
		err := ioctl(fd, iocGetSubvolRootRef, unsafe.Pointer(args))
		//nolint:errorlint // ioctl returns the bare errno
		if err != nil && err != unix.EOVERFLOW {
			return nil, err
		}
		all = append(all, args.refs[:args.n]...)
		if err == nil {
			return all, nil
		}
		// The kernel has stored where to go on in minTreeid.
	}
}

type receivedSubvolArgs struct {
	uuid     UUID
	stransid uint64
	rtransid uint64
	stime    timespec
	rtime    timespec
	flags    uint64
	_        [16]uint64
}

// SetReceived marks the subvolume whose root is open as fd as received from the one with that UUID and
// transaction id, as btrfs receive does.
func SetReceived(fd int, uuid UUID, transid uint64) error {
	return ioctl(fd, iocSetReceivedSubvol, unsafe.Pointer(&receivedSubvolArgs{uuid: uuid, stransid: transid}))
}
