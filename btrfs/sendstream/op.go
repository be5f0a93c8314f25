package sendstream

import "strconv"

// Op is the number of a command (enum btrfs_send_cmd).
type Op uint16

// Commands of stream version 1.
const (
	OpSubvol       Op = 1
	OpSnapshot     Op = 2
	OpMkfile       Op = 3
	OpMkdir        Op = 4
	OpMknod        Op = 5
	OpMkfifo       Op = 6
	OpMksock       Op = 7
	OpSymlink      Op = 8
	OpRename       Op = 9
	OpLink         Op = 10
	OpUnlink       Op = 11
	OpRmdir        Op = 12
	OpSetXattr     Op = 13
	OpRemoveXattr  Op = 14
	OpWrite        Op = 15
	OpClone        Op = 16
	OpTruncate     Op = 17
	OpChmod        Op = 18
	OpChown        Op = 19
	OpUtimes       Op = 20
	OpEnd          Op = 21
	OpUpdateExtent Op = 22
)

// Commands of stream version 2.
const (
	OpFallocate    Op = 23
	OpFileAttr     Op = 24
	OpEncodedWrite Op = 25
)

// OpEnableVerity is the command of stream version 3.
const OpEnableVerity Op = 26

var opNames = [...]string{
	OpSubvol:       "SUBVOL",
	OpSnapshot:     "SNAPSHOT",
	OpMkfile:       "MKFILE",
	OpMkdir:        "MKDIR",
	OpMknod:        "MKNOD",
	OpMkfifo:       "MKFIFO",
	OpMksock:       "MKSOCK",
	OpSymlink:      "SYMLINK",
	OpRename:       "RENAME",
	OpLink:         "LINK",
	OpUnlink:       "UNLINK",
	OpRmdir:        "RMDIR",
	OpSetXattr:     "SET_XATTR",
	OpRemoveXattr:  "REMOVE_XATTR",
	OpWrite:        "WRITE",
	OpClone:        "CLONE",
	OpTruncate:     "TRUNCATE",
	OpChmod:        "CHMOD",
	OpChown:        "CHOWN",
	OpUtimes:       "UTIMES",
	OpEnd:          "END",
	OpUpdateExtent: "UPDATE_EXTENT",
	OpFallocate:    "FALLOCATE",
	OpFileAttr:     "FILEATTR",
	OpEncodedWrite: "ENCODED_WRITE",
	OpEnableVerity: "ENABLE_VERITY",
}

// String returns the kernel's name of the command without its prefix, or "command N".
func (o Op) String() string {
	if int(o) < len(opNames) && opNames[o] != "" {
		return opNames[o]
	}
	return "command " + strconv.Itoa(int(o))
}
