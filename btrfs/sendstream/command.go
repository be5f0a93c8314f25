package sendstream

// Command is one step of a stream: a pointer to one of the command types of this package.
//
// Paths are relative to the root of the subvolume and slash-separated. They have no empty, "." or ".." components; ""
// is the root itself. Paths and other byte slices are bytes without any text encoding.
type Command interface {
	// Op is the command's number.
	Op() Op
	// attributes visits the command's attributes in the order in which the kernel writes them.
	attributes(v visitor)
}

// Subvol begins a full stream, whose commands build a subvolume from nothing.
type Subvol struct {
	Path     []byte // the name of the subvolume sent
	UUID     UUID   // of the subvolume sent, or of the subvolume that it was received from
	Ctransid uint64 // generation in which it was last changed
}

// Snapshot begins an incremental stream, whose commands change a copy of another subvolume.
type Snapshot struct {
	Path          []byte // the name of the subvolume sent
	UUID          UUID   // of the subvolume sent, or of the subvolume that it was received from
	Ctransid      uint64 // generation in which it was last changed
	CloneUUID     UUID   // likewise, of the subvolume that the stream builds on
	CloneCtransid uint64
}

// Mkfile makes an empty regular file.
type Mkfile struct {
	Path []byte
	Ino  uint64 // inode number on the sending side, 0 if the stream has none
}

// Mkdir makes an empty directory.
type Mkdir struct {
	Path []byte
	Ino  uint64 // inode number on the sending side, 0 if the stream has none
}

// Mknod makes a device node.
type Mknod struct {
	Path []byte
	Ino  uint64 // inode number on the sending side, 0 if the stream has none
	Rdev uint64 // device number as the kernel's new_encode_dev writes it, which is Linux's dev_t
	Mode uint64 // type and permissions
}

// Mkfifo makes a named pipe.
type Mkfifo struct {
	Path []byte
	Ino  uint64 // inode number on the sending side, 0 if the stream has none
	Rdev uint64 // without meaning
	Mode uint64 // type and permissions
}

// Mksock makes a socket.
type Mksock struct {
	Path []byte
	Ino  uint64 // inode number on the sending side, 0 if the stream has none
	Rdev uint64 // without meaning
	Mode uint64 // type and permissions
}

// Symlink makes a symbolic link.
type Symlink struct {
	Path   []byte
	Ino    uint64 // inode number on the sending side, 0 if the stream has none
	Target []byte // the content of the link, which is no path of the stream
}

// Rename moves a name to another.
type Rename struct {
	Path []byte // the present name
	To   []byte // the new name
}

// Link gives a file one more name.
type Link struct {
	Path   []byte // the new name
	Target []byte // a present name of the file
}

// Unlink removes a name of a file that is not a directory.
type Unlink struct {
	Path []byte
}

// Rmdir removes an empty directory.
type Rmdir struct {
	Path []byte
}

// SetXattr sets an extended attribute.
type SetXattr struct {
	Path []byte
	Name []byte // with its namespace: "user.x"
	Data []byte
}

// RemoveXattr removes an extended attribute.
type RemoveXattr struct {
	Path []byte
	Name []byte // with its namespace: "user.x"
}

// Write writes to a regular file.
type Write struct {
	Path   []byte
	Offset uint64
	Data   []byte
}

// Clone makes a range of a regular file share its extents with a range of another file, or of the same file.
type Clone struct {
	Offset        uint64 // in the file at Path
	Len           uint64
	Path          []byte
	CloneUUID     UUID // the subvolume that holds ClonePath, which may be the subvolume being received
	CloneCtransid uint64
	ClonePath     []byte
	CloneOffset   uint64 // in the file at ClonePath
}

// Truncate sets the size of a regular file.
type Truncate struct {
	Path []byte
	Size uint64
}

// Chmod sets permissions.
type Chmod struct {
	Path []byte
	Mode uint64 // permissions, with setuid, setgid and sticky; other bits have no meaning
}

// Chown sets the owner.
type Chown struct {
	Path []byte
	UID  uint64
	GID  uint64
}

// Utimes sets times.
type Utimes struct {
	Path                []byte
	Atime, Mtime, Ctime Timespec
	Otime               Timespec // time of creation; zero if the stream has none, as always in version 1
}

// End ends the stream.
type End struct{}

// UpdateExtent takes the place of Write in a stream without file data. It says that a range of the file was changed.
type UpdateExtent struct {
	Path   []byte
	Offset uint64
	Size   uint64
}

// Fallocate allocates or deallocates a range of a regular file. Version 2.
type Fallocate struct {
	Path   []byte
	Mode   uint32 // as in fallocate(2)
	Offset uint64
	Size   uint64
}

// FileAttr sets the flags of a file. Version 2.
type FileAttr struct {
	Path  []byte
	Flags uint64 // BTRFS_INODE flags, which differ from those of FS_IOC_SETFLAGS
}

// EncodedWrite writes compressed data to a regular file. Version 2. Its members are those of struct
// btrfs_ioctl_encoded_io_args.
type EncodedWrite struct {
	Path             []byte
	Offset           uint64 // in the file
	UnencodedFileLen uint64 // bytes of the file that are written
	UnencodedLen     uint64 // bytes of Data when decoded
	UnencodedOffset  uint64 // begin of the file's bytes in the decoded data
	Compression      Compression
	Encryption       uint32 // kernels send 0 only, for no encryption
	Data             []byte
}

// Compression says how the data of an EncodedWrite is compressed (BTRFS_ENCODED_IO_COMPRESSION).
type Compression uint32

// The compressions. LZO data are framed by the sector size of the sending filesystem.
const (
	CompressionNone   Compression = 0
	CompressionZlib   Compression = 1
	CompressionZstd   Compression = 2
	CompressionLZO4K  Compression = 3
	CompressionLZO8K  Compression = 4
	CompressionLZO16K Compression = 5
	CompressionLZO32K Compression = 6
	CompressionLZO64K Compression = 7
)

// EnableVerity makes a regular file read-only and verified by fs-verity. Version 3.
type EnableVerity struct {
	Path      []byte
	Algorithm uint8  // as in struct fsverity_enable_arg
	BlockSize uint32 // bytes
	Salt      []byte
	Signature []byte
}

// Op implements Command.
func (*Subvol) Op() Op { return OpSubvol }

// Op implements Command.
func (*Snapshot) Op() Op { return OpSnapshot }

// Op implements Command.
func (*Mkfile) Op() Op { return OpMkfile }

// Op implements Command.
func (*Mkdir) Op() Op { return OpMkdir }

// Op implements Command.
func (*Mknod) Op() Op { return OpMknod }

// Op implements Command.
func (*Mkfifo) Op() Op { return OpMkfifo }

// Op implements Command.
func (*Mksock) Op() Op { return OpMksock }

// Op implements Command.
func (*Symlink) Op() Op { return OpSymlink }

// Op implements Command.
func (*Rename) Op() Op { return OpRename }

// Op implements Command.
func (*Link) Op() Op { return OpLink }

// Op implements Command.
func (*Unlink) Op() Op { return OpUnlink }

// Op implements Command.
func (*Rmdir) Op() Op { return OpRmdir }

// Op implements Command.
func (*SetXattr) Op() Op { return OpSetXattr }

// Op implements Command.
func (*RemoveXattr) Op() Op { return OpRemoveXattr }

// Op implements Command.
func (*Write) Op() Op { return OpWrite }

// Op implements Command.
func (*Clone) Op() Op { return OpClone }

// Op implements Command.
func (*Truncate) Op() Op { return OpTruncate }

// Op implements Command.
func (*Chmod) Op() Op { return OpChmod }

// Op implements Command.
func (*Chown) Op() Op { return OpChown }

// Op implements Command.
func (*Utimes) Op() Op { return OpUtimes }

// Op implements Command.
func (*End) Op() Op { return OpEnd }

// Op implements Command.
func (*UpdateExtent) Op() Op { return OpUpdateExtent }

// Op implements Command.
func (*Fallocate) Op() Op { return OpFallocate }

// Op implements Command.
func (*FileAttr) Op() Op { return OpFileAttr }

// Op implements Command.
func (*EncodedWrite) Op() Op { return OpEncodedWrite }

// Op implements Command.
func (*EnableVerity) Op() Op { return OpEnableVerity }
