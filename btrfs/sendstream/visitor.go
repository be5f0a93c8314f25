package sendstream

// visitor is a decoder or an encoder of attributes. A decoder sets the variables that it gets pointers to, and an
// encoder reads them. So each command's layout is written once for both.
type visitor interface {
	uuid(Attr, *UUID)
	u8(Attr, *uint8)
	u32(Attr, *uint32)
	u64(Attr, *uint64)
	time(Attr, *Timespec)
	bytes(Attr, *[]byte)
	path(Attr, *[]byte)
	// data visits the attribute DATA, which is the last of its command.
	data(*[]byte)
	// optional says that the attribute may be missing. The variable of a missing attribute is zero.
	optional(Attr)
}
