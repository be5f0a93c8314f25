package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/ancestry"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// Hints asks the kernel for a send stream of top without file data, incremental from base, and takes from
// it the names that it speaks of.
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
	switch related, err := b.related(baseView.dir.info, topView.dir.info); {
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
	// A stream passes over nested subvolumes.
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

// rootNamesOf says which names a view has in its root directory.
func rootNamesOf(v *view) rootNames {
	return func(name string) bool {
		return unix.Faccessat(v.dir.fd(), name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
	}
}

// reasonOf names what kept hints from being had: of the kernel's errors, ENOENT from a bug with siblings among them,
// none keeps a walk from succeeding.
func reasonOf(err error) string {
	broken := (*sendstream.Error)(nil)
	switch {
	case errors.Is(err, unix.EPERM):
		return "permission"
	case errors.Is(err, unix.EAGAIN):
		return "dedupe"
	case errors.Is(err, unix.ENAMETOOLONG): // a stream names everything by its path from the root, of less than PATH_MAX bytes
		return "path-too-long"
	case errors.As(err, &broken): // of a process that was stopped meanwhile, see btrfsctl.Send
		return "malformed"
	}
	return "kernel"
}

// madeFrom is a subvolume by its UUID, and that of what it was made from; zero if that is not known.
type madeFrom struct{ uuid, parent btrfsctl.UUID }

// related reports whether two subvolumes have a common ancestor, themselves included.
func (b *Backend) related(base, top btrfsctl.Subvolume) (bool, error) {
	line := make(map[btrfsctl.UUID]bool)
	for v, err := range b.ancestors(top) {
		if err != nil || v.uuid == base.UUID {
			return err == nil, err
		}
		line[v.uuid] = true
	}
	for v, err := range b.ancestors(base) {
		if err != nil || line[v.uuid] {
			return err == nil, err
		}
	}
	return false, nil
}

// ancestors yields s, what s was made from, and so on, as far back as subvolumes still exist and once more.
func (b *Backend) ancestors(s btrfsctl.Subvolume) iter.Seq2[madeFrom, error] {
	return ancestry.Of(madeFrom{s.UUID, s.ParentUUID}, func(v madeFrom) (_ madeFrom, ok bool, err error) {
		if v.parent == (btrfsctl.UUID{}) {
			return madeFrom{}, false, nil
		}
		grandparent, err := b.parentUUID(v.parent)
		return madeFrom{v.parent, grandparent}, true, err
	})
}

// parentUUID is that of what the subvolume with that UUID was made from; zero if either is gone.
func (b *Backend) parentUUID(uuid btrfsctl.UUID) (btrfsctl.UUID, error) {
	id, err := btrfsctl.IDByUUID(int(b.fs.Fd()), uuid)
	if errors.Is(err, unix.ENOENT) {
		return btrfsctl.UUID{}, nil
	}
	if err != nil {
		return btrfsctl.UUID{}, err
	}
	fd, err := btrfsctl.OpenRoot(int(b.fs.Fd()), id)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		return btrfsctl.UUID{}, nil
	}
	if err != nil {
		return btrfsctl.UUID{}, err
	}
	defer unix.Close(fd)
	info, err := btrfsctl.Info(fd)
	return info.ParentUUID, err
}

// send hands consume the send stream of a view, incremental from the subvolume with id parent unless that
// is 0. Neither the end of ctx nor a consume that returns early leaves anything running.
func (b *Backend) send(ctx context.Context, v *view, parent, flags uint64, consume func(io.Reader) error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	sent := make(chan error, 1)
	out := int(w.Fd()) // puts w into blocking mode, without which the kernel would fail with EAGAIN
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
		return fmt.Errorf("send: %w", sendErr) // which is why the stream ended early
	case consumeErr != nil:
		return consumeErr
	case sendErr != nil:
		return fmt.Errorf("send: %w", sendErr)
	}
	return nil
}
