package sendstream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// MaxCommandSize is the length in bytes of the longest command of version 2 or later that a [Reader] accepts and a
// [Writer] writes. The format sets no limit there. The kernel's longest command is an extent of compressed data, 128
// KiB, plus 16 KiB (BTRFS_SEND_BUF_SIZE_V2).
const MaxCommandSize = 16 << 20

// maxCommandSizeV1 is the same for version 1, where the format sets it (BTRFS_SEND_BUF_SIZE_V1).
const maxCommandSizeV1 = 64 << 10

func maxCommandSize(version uint32) int {
	if version == 1 {
		return maxCommandSizeV1
	}
	return MaxCommandSize
}

const commandHeaderSize = 10 // sizeof(struct btrfs_cmd_header)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the checksum of a command whose header has 0 in place of the checksum. Go's implementation inverts
// at the beginning and the end, and the kernel's crc32c does not.
func checksum(header, payload []byte) uint32 {
	crc := crc32.Update(^uint32(0), castagnoli, header)
	return ^crc32.Update(crc, castagnoli, payload)
}

// Reader decodes a stream. It is not safe for concurrent use.
type Reader struct {
	r       *bufio.Reader
	version uint32
	offset  int64 // of the next command
	start   int64 // of the present command

	header  [commandHeaderSize]byte
	payload []byte // of the present command; reused
	decoder decoder
	set     commandSet
	command Command
	ended   bool
	err     error
}

// NewReader reads the header of a stream. Returns an [*Error] with ErrNotStream or ErrVersion if it cannot read such a
// stream.
//
// The Reader reads ahead: it may have consumed bytes of r after the END command.
func NewReader(r io.Reader) (*Reader, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	version, err := readHeader(buffered)
	if err != nil {
		return nil, &Error{Err: err}
	}
	return &Reader{r: buffered, version: version, offset: int64(headerSize)}, nil
}

// Version is the version of the stream.
func (r *Reader) Version() uint32 { return r.version }

// Offset is the place in the stream, in bytes, at which the present command begins.
func (r *Reader) Offset() int64 { return r.start }

// Command is the command that the last call of Next has decoded. The command and all that it refers to are valid until
// the next call of Next.
func (r *Reader) Command() Command { return r.command }

// Err is the error that made Next return false, or nil if the stream was complete.
func (r *Reader) Err() error { return r.err }

// More reports whether there are bytes after the END command, such as the stream of another subvolume. It waits for the end
// of the input.
func (r *Reader) More() (bool, error) {
	_, err := r.r.Peek(1)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil, err
}

// Next decodes the next command. It returns false after the END command, and if the stream is wrong.
func (r *Reader) Next() bool {
	if r.ended || r.err != nil {
		return false
	}
	r.start = r.offset
	op, err := r.read()
	if err == nil {
		r.command, err = r.decode(op)
	}
	if err != nil {
		r.command = nil
		r.err = &Error{Offset: r.start, Op: op, Err: err}
		return false
	}
	r.ended = op == OpEnd
	return true
}

// read reads the next command into r.payload and verifies its checksum.
func (r *Reader) read() (Op, error) {
	if _, err := io.ReadFull(r.r, r.header[:]); err != nil {
		return 0, truncated(err)
	}
	size := binary.LittleEndian.Uint32(r.header[:])
	op := Op(binary.LittleEndian.Uint16(r.header[4:]))
	if limit := maxCommandSize(r.version); int64(size) > int64(limit-commandHeaderSize) {
		return op, fmt.Errorf("%w: %d bytes of attributes", ErrTooLong, size)
	}
	if err := r.readPayload(int(size)); err != nil {
		return op, truncated(err)
	}
	want := binary.LittleEndian.Uint32(r.header[6:])
	clear(r.header[6:])
	if got := checksum(r.header[:], r.payload); got != want {
		return op, fmt.Errorf("%w: %08x instead of %08x", ErrChecksum, got, want)
	}
	r.offset += commandHeaderSize + int64(size)
	return op, nil
}

// readPayload reads size bytes into r.payload. The buffer grows as the bytes arrive, so that a length alone
// reserves no memory.
func (r *Reader) readPayload(size int) error {
	r.payload = r.payload[:0]
	for len(r.payload) < size {
		have := len(r.payload)
		if have == cap(r.payload) {
			grown := make([]byte, have, min(size, max(2*have, maxCommandSizeV1)))
			copy(grown, r.payload)
			r.payload = grown
		}
		r.payload = r.payload[:min(size, cap(r.payload))]
		if _, err := io.ReadFull(r.r, r.payload[have:]); err != nil {
			return err
		}
	}
	return nil
}

// decode makes a Command of r.payload.
func (r *Reader) decode(op Op) (Command, error) {
	command := r.set.command(op)
	if command == nil {
		return nil, ErrUnknownCommand
	}
	if err := r.decoder.split(r.payload, r.version); err != nil {
		return nil, err
	}
	command.attributes(&r.decoder)
	return command, r.decoder.err
}

// commandSet holds one command of each type, to be used again and again.
type commandSet struct {
	subvol       Subvol
	snapshot     Snapshot
	mkfile       Mkfile
	mkdir        Mkdir
	mknod        Mknod
	mkfifo       Mkfifo
	mksock       Mksock
	symlink      Symlink
	rename       Rename
	link         Link
	unlink       Unlink
	rmdir        Rmdir
	setXattr     SetXattr
	removeXattr  RemoveXattr
	write        Write
	clone        Clone
	truncate     Truncate
	chmod        Chmod
	chown        Chown
	utimes       Utimes
	end          End
	updateExtent UpdateExtent
	fallocate    Fallocate
	fileAttr     FileAttr
	encodedWrite EncodedWrite
	enableVerity EnableVerity
}

// command returns the command with that number, or nil if the number is unknown.
func (s *commandSet) command(op Op) Command {
	switch op {
	case OpSubvol:
		return &s.subvol
	case OpSnapshot:
		return &s.snapshot
	case OpMkfile:
		return &s.mkfile
	case OpMkdir:
		return &s.mkdir
	case OpMknod:
		return &s.mknod
	case OpMkfifo:
		return &s.mkfifo
	case OpMksock:
		return &s.mksock
	case OpSymlink:
		return &s.symlink
	case OpRename:
		return &s.rename
	case OpLink:
		return &s.link
	case OpUnlink:
		return &s.unlink
	case OpRmdir:
		return &s.rmdir
	case OpSetXattr:
		return &s.setXattr
	case OpRemoveXattr:
		return &s.removeXattr
	case OpWrite:
		return &s.write
	case OpClone:
		return &s.clone
	case OpTruncate:
		return &s.truncate
	case OpChmod:
		return &s.chmod
	case OpChown:
		return &s.chown
	case OpUtimes:
		return &s.utimes
	case OpEnd:
		return &s.end
	case OpUpdateExtent:
		return &s.updateExtent
	case OpFallocate:
		return &s.fallocate
	case OpFileAttr:
		return &s.fileAttr
	case OpEncodedWrite:
		return &s.encodedWrite
	case OpEnableVerity:
		return &s.enableVerity
	}
	return nil
}
