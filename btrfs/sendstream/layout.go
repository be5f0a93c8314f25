package sendstream

// The attributes of each command, as the functions of fs/btrfs/send.c write them.

func (c *Subvol) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.uuid(AttrUUID, &c.UUID)
	v.u64(AttrCtransid, &c.Ctransid)
}

func (c *Snapshot) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.uuid(AttrUUID, &c.UUID)
	v.u64(AttrCtransid, &c.Ctransid)
	v.uuid(AttrCloneUUID, &c.CloneUUID)
	v.u64(AttrCloneCtransid, &c.CloneCtransid)
}

// inode visits the inode number of a new file. The kernel always sends it, but btrfs receive does not need it. So
// programs that make streams may leave it out.
func inode(v visitor, ino *uint64) {
	v.optional(AttrIno)
	v.u64(AttrIno, ino)
}

func (c *Mkfile) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	inode(v, &c.Ino)
}

func (c *Mkdir) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	inode(v, &c.Ino)
}

func (c *Mknod) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	inode(v, &c.Ino)
	v.u64(AttrRdev, &c.Rdev)
	v.u64(AttrMode, &c.Mode)
}

func (c *Mkfifo) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	inode(v, &c.Ino)
	v.optional(AttrRdev)
	v.u64(AttrRdev, &c.Rdev)
	v.optional(AttrMode)
	v.u64(AttrMode, &c.Mode)
}

func (c *Mksock) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	inode(v, &c.Ino)
	v.optional(AttrRdev)
	v.u64(AttrRdev, &c.Rdev)
	v.optional(AttrMode)
	v.u64(AttrMode, &c.Mode)
}

func (c *Symlink) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	inode(v, &c.Ino)
	v.bytes(AttrPathLink, &c.Target)
}

func (c *Rename) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.path(AttrPathTo, &c.To)
}

func (c *Link) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.path(AttrPathLink, &c.Target)
}

func (c *Unlink) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
}

func (c *Rmdir) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
}

func (c *SetXattr) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.bytes(AttrXattrName, &c.Name)
	v.bytes(AttrXattrData, &c.Data)
}

func (c *RemoveXattr) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.bytes(AttrXattrName, &c.Name)
}

func (c *Write) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u64(AttrFileOffset, &c.Offset)
	v.data(&c.Data)
}

func (c *Clone) attributes(v visitor) {
	v.u64(AttrFileOffset, &c.Offset)
	v.u64(AttrCloneLen, &c.Len)
	v.path(AttrPath, &c.Path)
	v.uuid(AttrCloneUUID, &c.CloneUUID)
	v.u64(AttrCloneCtransid, &c.CloneCtransid)
	v.path(AttrClonePath, &c.ClonePath)
	v.u64(AttrCloneOffset, &c.CloneOffset)
}

func (c *Truncate) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u64(AttrSize, &c.Size)
}

func (c *Chmod) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u64(AttrMode, &c.Mode)
}

func (c *Chown) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u64(AttrUID, &c.UID)
	v.u64(AttrGID, &c.GID)
}

func (c *Utimes) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.time(AttrAtime, &c.Atime)
	v.time(AttrMtime, &c.Mtime)
	v.time(AttrCtime, &c.Ctime)
	v.optional(AttrOtime)
	v.time(AttrOtime, &c.Otime)
}

func (*End) attributes(visitor) {}

func (c *UpdateExtent) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u64(AttrFileOffset, &c.Offset)
	v.u64(AttrSize, &c.Size)
}

func (c *Fallocate) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u32(AttrFallocateMode, &c.Mode)
	v.u64(AttrFileOffset, &c.Offset)
	v.u64(AttrSize, &c.Size)
}

func (c *FileAttr) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u64(AttrFileAttr, &c.Flags)
}

func (c *EncodedWrite) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u64(AttrFileOffset, &c.Offset)
	v.u64(AttrUnencodedFileLen, &c.UnencodedFileLen)
	v.u64(AttrUnencodedLen, &c.UnencodedLen)
	v.u64(AttrUnencodedOffset, &c.UnencodedOffset)
	v.optional(AttrCompression)
	v.u32(AttrCompression, (*uint32)(&c.Compression))
	v.optional(AttrEncryption)
	v.u32(AttrEncryption, &c.Encryption)
	v.data(&c.Data)
}

func (c *EnableVerity) attributes(v visitor) {
	v.path(AttrPath, &c.Path)
	v.u8(AttrVerityAlgorithm, &c.Algorithm)
	v.u32(AttrVerityBlockSize, &c.BlockSize)
	v.bytes(AttrVeritySalt, &c.Salt)
	v.bytes(AttrVeritySignature, &c.Signature)
}
