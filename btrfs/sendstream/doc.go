// Package sendstream reads and writes the btrfs send stream, versions 1 to 3: what the ioctl
// BTRFS_IOC_SEND produces and btrfs receive consumes.
//
// A stream is a header and a sequence of commands, each of which says how to bring one tree one step
// closer to another: make a file, rename it, write to it. A [Reader] decodes it command by command:
//
//	stream, err := sendstream.NewReader(r)
//	for stream.Next() {
//		switch c := stream.Command().(type) {
//		case *sendstream.Rename:
//			// c.Path, c.To
//		}
//	}
//	err = stream.Err()
//
// A command and all that it refers to belong to the Reader and are valid until the next call of Next.
// Decoding does not allocate per command.
//
// A Reader trusts nothing: checksums are verified, lengths are bounded before memory is reserved, paths
// can only name things below the root that they are relative to, and a stream that ends early is an
// error. Errors are of type [*Error], which says where the stream is wrong and in which command.
//
// The format is defined by the kernel's fs/btrfs/send.h; what commands mean, and their order, by
// fs/btrfs/send.c. All integers are little-endian:
//
//	stream:    magic "btrfs-stream\0", u32 version, command…
//	command:   u32 length of the attributes, u16 command, u32 checksum, attribute…
//	attribute: u16 type, u16 length, value
//
// The checksum is CRC-32C with an initial value of 0 and no final inversion, over the whole command with
// the checksum taken as 0. From version 2 the attribute DATA has no length field and reaches to the end
// of its command.
package sendstream
