// Package sendstream reads and writes the btrfs send stream, versions 1 to 3. The ioctl BTRFS_IOC_SEND produces such
// streams, and btrfs receive consumes them.
//
// A stream is a header and a sequence of commands. Each command brings one tree one step closer to another: it makes a
// file, renames it, or writes to it. A [Reader] decodes a stream command by command:
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
// A command and all that it refers to belong to the Reader and are valid until the next call of Next. Decoding does not
// allocate per command.
//
// A Reader trusts nothing. It verifies checksums, and bounds lengths before it reserves memory. Paths can only name
// files below the root that they are relative to. A stream that ends early is an error. Errors are of type [*Error],
// which has the place of the fault in the stream, and the command.
//
// The kernel's fs/btrfs/send.h defines the format. fs/btrfs/send.c defines the meaning of commands, and their order.
// All integers are little-endian:
//
//	stream:    magic "btrfs-stream\0", u32 version, command…
//	command:   u32 length of the attributes, u16 command, u32 checksum, attribute…
//	attribute: u16 type, u16 length, value
//
// The checksum is CRC-32C with an initial value of 0 and no final inversion, over the whole command with the checksum
// taken as 0. From version 2 the attribute DATA has no length field and reaches to the end of its command.
package sendstream
