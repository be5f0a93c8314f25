package btrfs

import (
	"errors"
	"fmt"
	"io"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// replayed has the differences of two trees, as an incremental send stream tells them.
type replayed struct {
	hints *treediff.Hints
	// changed are the inodes of base that the stream changes and that top still has. The stream mentions each under one
	// name. An inode with several links may have more names, so addLinks adds a hint with the same flags for each of
	// these. Inodes that base does not have are not among changed, since the stream gives all their names.
	changed []changedInode
}

// changedInode is an inode that both trees have.
type changedInode struct {
	path  string         // one of its names in top, relative to the root
	flags treediff.Flags // of the hint at path
}

// replay reads an incremental stream without file data, from base to top, and tells where the two trees may differ:
//
//   - each name that was added, removed, or given to another inode; in the places that its directory has in base and in
//     top
//   - each changed inode, at its names in top
//
// Returns a *treediff.NoHintsError if the stream cannot be relied on. Its reasons are:
//
//   - "unknown-command" if this program does not know the stream's version, or a command or attribute in it
//   - "inconsistent" if the stream mentions names that cannot exist
//   - "orphan" if the stream leaves a file under a temporary name (see orphanInode)
//
// If the stream is broken, replay returns another error.
func replay(r io.Reader) (*replayed, error) {
	return replayBetween(r, nil, nil)
}

// rootNames reports whether the root directory of a tree has a name.
type rootNames func(name string) bool

// replayBetween is replay with the means to tell temporary names from files that somebody has named like them. No name
// is used for both: the kernel avoids names that the roots of base and top have. replayBetween calls base and top for
// such names only.
//
// Without top, such a name that is new in top is an error with the reason "orphan". Without base, replayBetween
// believes a stream that says that base has such a name.
func replayBetween(r io.Reader, base, top rootNames) (*replayed, error) {
	stream, err := sendstream.NewReader(r)
	if err != nil {
		return nil, streamError(err)
	}
	names := newNamespace(base)
	if err := names.replay(stream); err != nil {
		return nil, err
	}
	if err := names.settle(top); err != nil {
		return nil, err
	}
	result := &replayed{hints: &treediff.Hints{}}
	result.changed, err = names.report(result.hints.Add)
	if err != nil {
		return nil, err
	}
	return result, nil
}

// streamError tells streams that need a newer program from broken streams.
func streamError(err error) error {
	if errors.Is(err, sendstream.ErrUnknownCommand) || errors.Is(err, sendstream.ErrUnknownAttribute) ||
		errors.Is(err, sendstream.ErrVersion) {
		return &treediff.NoHintsError{Reason: "unknown-command", Err: err}
	}
	return fmt.Errorf("replay: %w", err)
}

// inconsistent returns the error for a stream that does not fit its tree.
func inconsistent(format string, args ...any) error {
	return &treediff.NoHintsError{Reason: "inconsistent", Err: fmt.Errorf(format, args...)}
}

// replay applies a whole stream.
func (s *namespace) replay(stream *sendstream.Reader) error {
	begun := false
	for stream.Next() {
		command := stream.Command()
		_, begins := command.(*sendstream.Snapshot)
		if begins == begun {
			return inconsistent("offset %d: no incremental stream has %v there", stream.Offset(), command.Op())
		}
		begun = true
		if err := s.apply(command); err != nil {
			return fmt.Errorf("replay: offset %d: %v: %w", stream.Offset(), command.Op(), err)
		}
	}
	if err := stream.Err(); err != nil {
		return streamError(err)
	}
	return nil
}

// apply applies one command.
func (s *namespace) apply(command sendstream.Command) error {
	switch c := command.(type) {
	case *sendstream.Snapshot, *sendstream.End:
		return nil
	case *sendstream.Subvol:
		return inconsistent("the stream is for another tree from here on")

	case *sendstream.Mkfile:
		return s.create(c.Path, c.Ino, false)
	case *sendstream.Mkdir:
		return s.create(c.Path, c.Ino, true)
	case *sendstream.Mknod:
		return s.create(c.Path, c.Ino, false)
	case *sendstream.Mkfifo:
		return s.create(c.Path, c.Ino, false)
	case *sendstream.Mksock:
		return s.create(c.Path, c.Ino, false)
	case *sendstream.Symlink:
		return s.create(c.Path, c.Ino, false)
	case *sendstream.Rename:
		return s.rename(c.Path, c.To)
	case *sendstream.Link:
		return s.link(c.Path, c.Target)
	case *sendstream.Unlink:
		return s.remove(c.Path)
	case *sendstream.Rmdir:
		return s.remove(c.Path)

	case *sendstream.Write:
		return s.touch(c.Path, treediff.Written)
	case *sendstream.EncodedWrite:
		return s.touch(c.Path, treediff.Written)
	case *sendstream.Clone:
		return s.touch(c.Path, treediff.Written)
	case *sendstream.Truncate:
		return s.touch(c.Path, treediff.Written)
	case *sendstream.Fallocate:
		return s.touch(c.Path, treediff.Written)
	case *sendstream.UpdateExtent:
		return s.touch(c.Path, treediff.Written)

	case *sendstream.Chmod:
		return s.touch(c.Path, 0)
	case *sendstream.Chown:
		return s.touch(c.Path, 0)
	case *sendstream.Utimes:
		return s.touch(c.Path, 0)
	case *sendstream.SetXattr:
		return s.touch(c.Path, 0)
	case *sendstream.RemoveXattr:
		return s.touch(c.Path, 0)
	case *sendstream.FileAttr:
		return s.touch(c.Path, 0)
	case *sendstream.EnableVerity:
		return s.touch(c.Path, 0)
	}
	return &treediff.NoHintsError{Reason: "unknown-command", Err: sendstream.ErrUnknownCommand}
}
