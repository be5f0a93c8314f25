package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/eintr"
)

// received names the subvolume that a stream was sent from, in the terms of BTRFS_IOC_SET_RECEIVED_SUBVOL.
type received struct {
	uuid     btrfsctl.UUID
	ctransid uint64
}

// receive applies a send stream to the writable subvolume whose root is open as root. For a full stream, the subvolume
// is empty. For an incremental stream, it is a snapshot of source, the read-only subvolume that the stream builds on.
// receive waits for the end of r, and nothing may follow the stream. The caller makes the result durable and read-only,
// and records the subvolume that it was received from.
//
// Whatever the stream holds, receive changes nothing outside of root, and reads nothing outside of root and source.
// Nobody else may change the tree meanwhile. Memory is bounded by the stream's longest command. Like btrfs receive, it
// does not apply the flags that chattr(1) sets; it applies everything else.
//
// Errors name the command and its place in the stream:
//
//   - errdefs.ErrInvalidArgument if the stream is not of the kind that root and source are for, is cut off or damaged, or makes
//     no sense
//   - errdefs.ErrFailedPrecondition if the stream builds on, or clones from, another subvolume than source
//   - errdefs.ErrNotImplemented if the stream needs a function that this kernel or Cowshed does not have
//
// Other errors are those of r and of the filesystem, and the cause of ctx's end. receive looks at ctx
// between commands; it does not interrupt a read from r.
func receive(ctx context.Context, root, source *os.File, r io.Reader) (received, error) {
	stream, err := sendstream.NewReader(r)
	if err != nil {
		return received{}, fmt.Errorf("receive: %w", explainStream(err))
	}
	v := &receiver{tree: newReceiveTree(int(root.Fd()))}
	defer v.tree.close()
	if v.rootTimes, err = times(root); err != nil {
		return received{}, fmt.Errorf("receive: root: %w", err)
	}
	defer v.decoder.close()
	if source != nil {
		if err := v.setSource(source); err != nil {
			return received{}, fmt.Errorf("receive: source: %w", err)
		}
		defer v.source.close()
	}
	for stream.Next() {
		if ctx.Err() != nil {
			return received{}, context.Cause(ctx)
		}
		if err := v.apply(stream.Command()); err != nil {
			return received{}, fmt.Errorf("receive: offset %d: %v: %w", stream.Offset(), stream.Command().Op(), err)
		}
	}
	if err := stream.Err(); err != nil {
		return received{}, fmt.Errorf("receive: %w", explainStream(err))
	}
	more, err := stream.More()
	if err != nil {
		return received{}, fmt.Errorf("receive: after the end: %w", err)
	}
	if more {
		return received{}, fmt.Errorf("receive: %w", invalid("the stream has data after its end: if it holds more than one subvolume, send each of them separately"))
	}
	return v.received, nil
}

// explainStream gives the fault of a stream its kind, and names a way out. Errors of the stream's reader stay as they are.
func explainStream(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(errdefs.ErrInvalidArgument, "the stream is cut off: send it again, and wait for its end: %w", err)
	case errors.Is(err, sendstream.ErrChecksum):
		return fault.New(errdefs.ErrInvalidArgument, "the stream was damaged on its way: send it again: %w", err)
	case errors.Is(err, sendstream.ErrNotStream), errors.Is(err, sendstream.ErrMalformed), errors.Is(err, sendstream.ErrTooLong):
		return fault.As(errdefs.ErrInvalidArgument, err)
	case errors.Is(err, sendstream.ErrVersion), errors.Is(err, sendstream.ErrUnknownCommand), errors.Is(err, sendstream.ErrUnknownAttribute):
		return fault.New(errdefs.ErrNotImplemented, "the stream needs a newer version: send it with btrfs send --proto 1: %w", err)
	}
	return err
}

// receiver applies the commands of one stream.
type receiver struct {
	tree        *receiveTree
	source      *receiveTree // or nil
	sourceUUIDs [2]btrfsctl.UUID
	begun       bool
	received    received
	// rootTimes are the times of access and modification for the root at the end. The kernel does not send them if the
	// root is the same on both sides. But making and moving files in the root changes its times.
	rootTimes [2]unix.Timespec
	decoder   extentDecoder
}

func (v *receiver) setSource(source *os.File) error {
	info, err := btrfsctl.Info(int(source.Fd()))
	if err != nil {
		return err
	}
	v.source = newReceiveTree(int(source.Fd()))
	v.sourceUUIDs = [2]btrfsctl.UUID{info.UUID, info.ReceivedUUID}
	return nil
}

// isSource reports whether the UUID in a stream means the source. It may be the source's own UUID, or that of the
// subvolume that the source was received from.
func (v *receiver) isSource(uuid btrfsctl.UUID) bool {
	return v.source != nil && uuid != btrfsctl.UUID{} && (uuid == v.sourceUUIDs[0] || uuid == v.sourceUUIDs[1])
}

func invalid(format string, args ...any) error {
	return fault.New(errdefs.ErrInvalidArgument, "%s", fmt.Sprintf(format, args...))
}

// apply applies one command.
func (v *receiver) apply(command sendstream.Command) error {
	switch c := command.(type) {
	case *sendstream.Subvol:
		if v.source != nil {
			return invalid("the stream is a full one, and does not build on another subvolume")
		}
		return v.begin(c.UUID, c.Ctransid)
	case *sendstream.Snapshot:
		if v.source == nil {
			return invalid("the stream is incremental from the subvolume %v (%q), and no source is given", c.CloneUUID, c.Path)
		}
		if !v.isSource(btrfsctl.UUID(c.CloneUUID)) {
			return fault.New(errdefs.ErrFailedPrecondition, "the stream builds on the subvolume %v, which the source is not", c.CloneUUID)
		}
		return v.begin(c.UUID, c.Ctransid)
	}
	if !v.begun {
		return invalid("the stream does not begin with its subvolume")
	}
	if handled, err := v.applyData(command); handled {
		return err
	}
	// The commands below may put another file at the path of the open file.
	v.tree.closeFile()
	return v.applyName(command)
}

func (v *receiver) begin(uuid sendstream.UUID, ctransid uint64) error {
	if v.begun {
		return invalid("the stream is of more than one subvolume")
	}
	v.begun = true
	v.received = received{uuid: btrfsctl.UUID(uuid), ctransid: ctransid}
	return nil
}

// applyData applies a command that changes the data of a regular file.
func (v *receiver) applyData(command sendstream.Command) (handled bool, err error) {
	switch c := command.(type) {
	case *sendstream.Write:
		return true, v.write(c.Path, c.Offset, c.Data)
	case *sendstream.EncodedWrite:
		return true, v.encodedWrite(c)
	case *sendstream.Clone:
		return true, v.clone(c)
	case *sendstream.Truncate:
		return true, v.truncate(c)
	case *sendstream.Fallocate:
		return true, v.fallocate(c)
	case *sendstream.UpdateExtent:
		return true, invalid("the stream was made without file data")
	}
	return false, nil
}

// applyName applies a command that changes names or attributes.
func (v *receiver) applyName(command sendstream.Command) error {
	switch c := command.(type) {
	case *sendstream.Mkfile:
		return v.tree.makeFile(c.Path)
	case *sendstream.Mkdir:
		return v.tree.makeDir(c.Path)
	case *sendstream.Mknod:
		return v.mknod(c)
	case *sendstream.Mkfifo:
		return v.tree.makeNode(c.Path, unix.S_IFIFO, 0)
	case *sendstream.Mksock:
		return v.tree.makeNode(c.Path, unix.S_IFSOCK, 0)
	case *sendstream.Symlink:
		return v.tree.symlink(c.Path, c.Target)
	case *sendstream.Rename:
		return v.tree.rename(c.Path, c.To)
	case *sendstream.Link:
		return v.tree.link(c.Path, c.Target)
	case *sendstream.Unlink:
		return v.tree.remove(c.Path, 0)
	case *sendstream.Rmdir:
		return v.tree.remove(c.Path, unix.AT_REMOVEDIR)

	case *sendstream.SetXattr:
		return v.tree.setXattr(c.Path, c.Name, c.Data)
	case *sendstream.RemoveXattr:
		return v.tree.removeXattr(c.Path, c.Name)
	case *sendstream.Chmod:
		return v.tree.chmod(c.Path, uint32(c.Mode&0o7777))
	case *sendstream.Chown:
		return v.chown(c)
	case *sendstream.Utimes:
		return v.utimes(c)
	case *sendstream.FileAttr:
		// These are flags of btrfs's inodes. Some cannot be set on a file that has data, and some would make later
		// commands fail.
		return nil
	case *sendstream.EnableVerity:
		return v.enableVerity(c)

	case *sendstream.End:
		return v.tree.utimes(nil, v.rootTimes)
	}
	return fault.As(errdefs.ErrNotImplemented, sendstream.ErrUnknownCommand)
}

// fileRange checks that a file can have length bytes at offset, and returns the offset.
func fileRange(offset, length uint64) (int64, error) {
	if offset > math.MaxInt64 || length > math.MaxInt64-offset {
		return 0, invalid("%d bytes at offset %d are beyond the largest possible file", length, offset)
	}
	return int64(offset), nil
}

func (v *receiver) write(path []byte, offset uint64, data []byte) error {
	at, err := fileRange(offset, uint64(len(data)))
	if err != nil {
		return err
	}
	fd, err := v.tree.writable(path)
	if err != nil {
		return err
	}
	for len(data) > 0 {
		n, err := eintr.Retry(func() (int, error) { return unix.Pwrite(fd, data, at) })
		if err != nil {
			return pathError("write", path, err)
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}

func (v *receiver) truncate(c *sendstream.Truncate) error {
	size, err := fileRange(c.Size, 0)
	if err != nil {
		return err
	}
	fd, err := v.tree.writable(c.Path)
	if err != nil {
		return err
	}
	return pathError("truncate", c.Path, eintr.Ignore(func() error { return unix.Ftruncate(fd, size) }))
}

func (v *receiver) fallocate(c *sendstream.Fallocate) error {
	offset, err := fileRange(c.Offset, c.Size)
	if err != nil {
		return err
	}
	fd, err := v.tree.writable(c.Path)
	if err != nil {
		return err
	}
	return pathError("fallocate", c.Path, eintr.Ignore(func() error {
		return unix.Fallocate(fd, c.Mode, offset, int64(c.Size))
	}))
}

// clone makes a file share a range with a file of this tree, or of the source.
func (v *receiver) clone(c *sendstream.Clone) error {
	if _, err := fileRange(c.Offset, c.Len); err != nil {
		return err
	}
	if _, err := fileRange(c.CloneOffset, c.Len); err != nil {
		return err
	}
	var from *receiveTree
	switch uuid := btrfsctl.UUID(c.CloneUUID); {
	case uuid == v.received.uuid:
		from = v.tree
	case v.isSource(uuid):
		from = v.source
	default:
		return fault.New(errdefs.ErrFailedPrecondition, "it clones from %q of the subvolume %v, which is neither this one nor the source", c.ClonePath, c.CloneUUID)
	}
	fd, err := v.tree.writable(c.Path)
	if err != nil {
		return err
	}
	source, err := from.openRegular(c.ClonePath, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	return pathError("clone to", c.Path, eintr.Ignore(func() error {
		return unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{
			Src_fd: int64(source), Src_offset: c.CloneOffset, Src_length: c.Len, Dest_offset: c.Offset,
		})
	}))
}

func (v *receiver) mknod(c *sendstream.Mknod) error {
	kind := uint32(c.Mode & unix.S_IFMT)
	if kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return invalid("mode %o is not the mode of a device", c.Mode)
	}
	if c.Rdev > math.MaxUint32 {
		return invalid("there is no device %#x", c.Rdev)
	}
	return v.tree.makeNode(c.Path, kind, int(c.Rdev))
}

func (v *receiver) chown(c *sendstream.Chown) error {
	// The largest number means no change in chown(2).
	if c.UID >= math.MaxUint32 || c.GID >= math.MaxUint32 {
		return invalid("there is no owner %d:%d", c.UID, c.GID)
	}
	return v.tree.chown(c.Path, int(c.UID), int(c.GID))
}

func (v *receiver) utimes(c *sendstream.Utimes) error {
	atime, err := unix.TimeToTimespec(c.Atime.Time())
	if err != nil {
		return invalid("access time %v", c.Atime.Time())
	}
	mtime, err := unix.TimeToTimespec(c.Mtime.Time())
	if err != nil {
		return invalid("modification time %v", c.Mtime.Time())
	}
	if len(c.Path) == 0 {
		v.rootTimes = [2]unix.Timespec{atime, mtime}
	}
	return v.tree.utimes(c.Path, [2]unix.Timespec{atime, mtime})
}

// times returns the times of access and modification of an open file.
func times(f *os.File) (times [2]unix.Timespec, err error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return times, err
	}
	return [2]unix.Timespec{stat.Atim, stat.Mtim}, nil
}

func (v *receiver) enableVerity(c *sendstream.EnableVerity) error {
	fd, err := v.tree.openRegular(c.Path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = btrfsctl.EnableVerity(fd, c.Algorithm, c.BlockSize, c.Salt, c.Signature)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		err = fault.New(errdefs.ErrNotImplemented, "this kernel has no fs-verity: %w", err)
	}
	return pathError("enable verity of", c.Path, err)
}
