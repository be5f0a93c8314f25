package zfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/poll"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// The outcome of a call that was interrupted, or does not end, is not known until it has been looked at. The kernel shows
// it, never the index.

// step is one call that changes something.
type step struct {
	op string // for errors and the log
	do func(kernel) error
	// happened looks whether the step has happened completely. If the step has happened in part, happened removes that
	// part.
	happened func(ctx context.Context) (bool, error)
	// undo takes the step back if it happens after the caller was told that its outcome is not known. nil: the change
	// stays.
	undo func(ctx context.Context) error
}

// act does a step. Without an error the step has happened. With an error it has not, unless the error says that the
// outcome is not known (see after). The index is doubted if the call was interrupted or does not end.
func (b *Backend) act(ctx context.Context, s step) error {
	err := b.change(ctx, s)
	if !isLost(err) || isLeft(err) {
		return err
	}
	b.volumes.doubt()
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	happened, lookErr := s.happened(ctx)
	switch {
	case lookErr != nil:
		return fmt.Errorf("%w, and its outcome cannot be found out: %w", err, lookErr)
	case happened:
		return nil
	}
	return err
}

// change makes the call of a step. If it is left to itself, its outcome is settled later.
func (b *Backend) change(ctx context.Context, s step) error {
	err := b.zfs.change(ctx, s.op, s.do)
	var lost *lostError
	if errors.As(err, &lost) && lost.left {
		b.settleLater(ctx, lost, s)
		return fault.New(errdefs.ErrUnavailable, "its outcome is not known yet, look again later: %w", err)
	}
	return err
}

// actToEnd does a step that stops in the middle when it is interrupted, and then does it again.
func (b *Backend) actToEnd(ctx context.Context, s step) error {
	err := b.act(ctx, s)
	var lost *lostError
	if errors.As(err, &lost) && !lost.left {
		ctx, cancel := b.zfs.later(ctx)
		defer cancel()
		err = b.act(ctx, s)
	}
	return err
}

// settleLater waits in the background for a call that was left to itself. If its step has happened then, settleLater
// undoes it. Until then the index is doubted, since anything may change at any time.
func (b *Backend) settleLater(ctx context.Context, lost *lostError, s step) {
	ctx = context.WithoutCancel(ctx) // the call goes on when the request is cancelled
	b.volumes.doubtWhile(true)
	lost.next = &sequel{op: s.op}
	done := b.pending.begin()
	go func() {
		<-lost.ended
		happened, err := b.settle(ctx, s)
		b.log.Warn("zfs: an abandoned call of the kernel has ended", "call", s.op, "happened", happened, "error", err)
		_ = b.after(err, func() error { // the undo may be left to itself too
			b.volumes.doubtWhile(false)
			b.follow(lost.next, done)
			return nil
		})
	}()
}

// settle looks whether a step has happened whose call has ended, and undoes it then. It looks again while the pool is
// unavailable, and ends with Close: the locks that this process has keep others away, and must not be given up for an
// outcome that nobody knows.
func (b *Backend) settle(ctx context.Context, s step) (happened bool, err error) {
	looking, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.closing, cancel)()
	err = poll.WhileBusy(looking, poll.Pauses{First: 100 * time.Millisecond, Longest: 10 * time.Second}, func() (busy bool, err error) {
		happened, err = s.happened(ctx)
		if err == nil && happened && s.undo != nil {
			err = s.undo(ctx)
		}
		return errdefs.IsUnavailable(err) && !isLeft(err), err
	})
	return happened, err
}

// isGone is step.happened for steps that destroy a dataset or snapshot.
func (b *Backend) isGone(name string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		there, err := b.zfs.exists(ctx, name)
		return !there, err
	}
}

// isThere is step.happened for steps that make a snapshot.
func (b *Backend) isThere(name string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) { return b.zfs.exists(ctx, name) }
}

// isPresent is step.happened for steps that make a file.
func isPresent(path string) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
}

// isAbsentAt is step.happened for steps that delete a file or directory.
func isAbsentAt(path string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		present, err := isPresent(path)(ctx)
		return !present && err == nil, err
	}
}

// discard destroys a dataset or snapshot that nobody was told of, if it exists.
func (b *Backend) discard(ctx context.Context, name string) error {
	if strings.Contains(name, "@") {
		return b.destroyIfThere(ctx, name, func(k kernel) error { return k.DestroySnapshot(name) })
	}
	return b.destroyIfThere(ctx, name, func(k kernel) error { return k.Destroy(name) })
}

// discardTree destroys a dataset that nobody was told of, with its snapshots and the datasets below it, if it exists.
func (b *Backend) discardTree(ctx context.Context, name string) error {
	return b.destroyIfThere(ctx, name, func(k kernel) error { return destroyTree(k, name) })
}

func (b *Backend) destroyIfThere(ctx context.Context, name string, destroy func(kernel) error) error {
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	there, err := b.zfs.exists(ctx, name)
	if err != nil || !there {
		return err
	}
	err = b.actToEnd(ctx, step{op: "destroy", do: destroy, happened: b.isGone(name)})
	if isRefused(err) && errors.Is(err, unix.ENOENT) { // somebody else was faster
		return nil
	}
	return err
}

func destroyTree(k kernel, name string) error {
	for _, below := range []struct {
		list    iter.Seq2[zfsctl.Dataset, error]
		destroy func(string) error
	}{
		{k.Children(name), func(child string) error { return destroyTree(k, child) }},
		{k.Snapshots(name), k.DestroySnapshot},
	} {
		var names []string // collected first: the list goes on from a place that destroying may move
		for d, err := range below.list {
			if err != nil {
				return err
			}
			names = append(names, d.Name)
		}
		for _, name := range names {
			if err := below.destroy(name); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
	}
	return k.Destroy(name)
}
