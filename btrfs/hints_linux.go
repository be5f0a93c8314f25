package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// Hints asks the kernel for a send stream of top, incremental from base and without file data. It hints at the names in
// the stream, at all other names of changed inodes, and at nested subvolumes.
func (b *Backend) Hints(ctx context.Context, base, top cowcommon.View) (*treediff.Hints, error) {
	hints, err := b.hints(ctx, base, top)
	if err != nil {
		return nil, fault.Wrap("find hints", "", treediff.WithoutHints(ctx, reasonOf(err), err))
	}
	return hints, nil
}

func (b *Backend) hints(ctx context.Context, base, top cowcommon.View) (*treediff.Hints, error) {
	baseView, ok1 := base.(*view)
	topView, ok2 := top.(*view)
	if !ok1 || !ok2 || baseView.b.fsUUID != topView.b.fsUUID {
		return nil, &treediff.NoHintsError{Reason: "unrelated", Err: errors.New("not two views of one btrfs filesystem")}
	}
	switch related, err := b.related(baseView.dir, topView.dir); {
	case err != nil:
		return nil, fmt.Errorf("find common ancestor: %w", err)
	case !related:
		return nil, &treediff.NoHintsError{Reason: "unrelated", Err: errors.New("the layers have no common ancestor")}
	}

	var replayed *replayed
	err := b.send(ctx, topView, baseView.dir.info.ID, btrfsctl.SendNoFileData, func(r io.Reader) error {
		var err error
		replayed, err = replayBetween(r, rootNamesOf(baseView), rootNamesOf(topView))
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := addLinks(topView.dir.File, replayed); err != nil {
		return nil, err
	}
	// The kernel leaves nested subvolumes out of the stream.
	for _, v := range []*view{baseView, topView} {
		for _, n := range v.nested {
			if n.path == "" {
				return nil, &treediff.NoHintsError{Reason: "path-too-long", Err: fmt.Errorf("of nested subvolume %d", n.id)}
			}
			replayed.hints.Add(n.path, treediff.Deep)
		}
	}
	return replayed.hints, nil
}

// rootNamesOf returns a function that reports whether the root directory of a view has a name.
func rootNamesOf(v *view) rootNames {
	return func(name string) bool {
		return unix.Faccessat(v.dir.fd(), name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
	}
}

// reasonOf returns the reason for the lack of hints. A walk can succeed after any error of the kernel, even after
// ENOENT, which comes from a bug with siblings.
func reasonOf(err error) string {
	broken := (*sendstream.Error)(nil)
	switch {
	case errors.Is(err, unix.EPERM):
		return "permission"
	case errors.Is(err, unix.EAGAIN):
		return "dedupe"
	case errors.Is(err, unix.ENAMETOOLONG): // a stream has paths from the root, of less than PATH_MAX bytes
		return "path-too-long"
	case errors.As(err, &broken): // the process was stopped meanwhile, see btrfsctl.Send
		return "malformed"
	}
	return "kernel"
}

// longestLine is the most ancestors that are looked for.
const longestLine = 1024

// line has the UUIDs of a subvolume and its ancestors. It is whole if it reaches the subvolume that was made empty. Otherwise an
// ancestor has been destroyed, and with it the knowledge of its own parent.
type line struct {
	uuids map[btrfsctl.UUID]bool
	whole bool
}

// related reports whether two subvolumes have a common ancestor, themselves included. A wrong yes would hide changes: the kernel
// passes over the extents of a file whose inode is the same in both. So the origin is asked only if an ancestor has been destroyed.
func (b *Backend) related(base, top *subvolume) (bool, error) {
	one, err := b.lineOf(base)
	if err != nil {
		return false, err
	}
	other, err := b.lineOf(top)
	if err != nil {
		return false, err
	}
	for uuid := range one.uuids {
		if other.uuids[uuid] {
			return true, nil
		}
	}
	if one.whole && other.whole {
		return false, nil
	}
	return haveOneOrigin(base, top)
}

// lineOf walks from a subvolume to its ancestors.
func (b *Backend) lineOf(s *subvolume) (line, error) {
	l := line{uuids: map[btrfsctl.UUID]bool{s.info.UUID: true}}
	parent, err := b.parentOf(s.fd(), s.info)
	for range longestLine {
		if err != nil {
			return l, err
		}
		if l.whole = parent == (btrfsctl.UUID{}); l.whole {
			return l, nil
		}
		l.uuids[parent] = true
		var there bool
		if parent, there, err = b.parentOfUUID(parent); err == nil && !there {
			return l, nil
		}
	}
	return l, nil
}

// parentOfUUID returns the UUID of the volume that the subvolume with a UUID was made from, zero if it was made empty. there is false
// if that subvolume has been destroyed.
func (b *Backend) parentOfUUID(uuid btrfsctl.UUID) (parent btrfsctl.UUID, there bool, err error) {
	id, err := btrfsctl.IDByUUID(int(b.fs.Fd()), uuid)
	if errors.Is(err, unix.ENOENT) {
		return parent, false, nil
	}
	if err != nil {
		return parent, false, err
	}
	fd, err := btrfsctl.OpenRoot(int(b.fs.Fd()), id)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		return parent, false, nil
	}
	if err != nil {
		return parent, false, err
	}
	defer unix.Close(fd)
	info, err := btrfsctl.Info(fd)
	if err == nil {
		parent, err = b.parentOf(fd, info)
	}
	return parent, true, err
}

// origin identifies the subvolume that was made empty and from which a subvolume comes, by snapshots of snapshots. These keep the root
// directory, with the transaction and the time in which it was made. So the subvolumes between need not be there any more.
// Subvolumes that were made empty in the same transaction, within a tick of the clock, have equal origins.
type origin struct {
	generation uint32
	made       unix.StatxTimestamp
}

func haveOneOrigin(base, top *subvolume) (bool, error) {
	one, err := originOf(base.fd())
	if err != nil {
		return false, err
	}
	other, err := originOf(top.fd())
	return err == nil && one == other, err
}

// originOf finds the origin of a subvolume. fd is its root.
func originOf(fd int) (o origin, err error) {
	generation, err := btrfsctl.Generation(fd)
	if err != nil {
		return o, fmt.Errorf("generation of the root: %w", err)
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st); err != nil {
		return o, fmt.Errorf("birth time of the root: %w", err)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return o, errors.New("the kernel does not tell the birth time of the root")
	}
	return origin{generation, st.Btime}, nil
}

// send gives consume the send stream of a view, incremental from the subvolume with the id parent unless that is 0.
// Nothing is left running when send returns, even if ctx has ended or consume has returned early.
func (b *Backend) send(ctx context.Context, v *view, parent, flags uint64, consume func(io.Reader) error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	sent := make(chan error, 1)
	out := int(w.Fd()) // puts w into blocking mode; otherwise the kernel would fail with EAGAIN
	go func() {
		err := btrfsctl.Send(v.dir.fd(), out, parent, flags, 0)
		sent <- errors.Join(err, w.Close())
	}()
	consumeErr := consume(r)
	stop()
	_ = r.Close() // the kernel gets EPIPE if it is still writing
	sendErr := <-sent
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case sendErr != nil && !errors.Is(sendErr, unix.EPIPE):
		return fmt.Errorf("send: %w", sendErr) // the reason why the stream ended early
	case consumeErr != nil:
		return consumeErr
	case sendErr != nil:
		return fmt.Errorf("send: %w", sendErr)
	}
	return nil
}
