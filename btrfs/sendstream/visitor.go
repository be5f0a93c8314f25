package sendstream

// visitor is either a decoder, which sets what it is given a pointer to, or an encoder, which reads it.
// The layout of a command is so written once for both.
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
	// optional says that the attribute may be missing, and is zero then.
	optional(Attr)
}
