package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// The outcome of a zfs process that was killed, or does not end, is not known until it has been looked at: in the kernel
// or by another zfs process, never in the index.

// step is one run of zfs that changes something.
type step struct {
	args     []string
	in       io.Reader
	inherits []*os.File
	// happened looks whether the step has happened, and completely. What is there of a part of it, it takes away.
	happened func(ctx context.Context) (bool, error)
	// undo takes back what has happened after the caller was told that it was not known. nil: it stays.
	undo func(ctx context.Context) error
}

// act does a step, and returns what zfs has written. It has happened if there is no error, and only then, unless the
// error says that this is not known (see after). The index is doubted where an error does not come from zfs itself.
func (b *Backend) act(ctx context.Context, s step) ([]byte, error) {
	out, err := b.zfs.change(ctx, s.inherits, s.in, s.args...)
	var lost *lostError
	switch {
	case err == nil:
		return out, nil
	case !errors.As(err, &lost):
		return nil, err
	case lost.left:
		b.settleLater(ctx, lost, s)
		return nil, fault.New(errdefs.ErrUnavailable, "what it will have done is not known, look again later: %w", err)
	}
	b.volumes.doubt()
	happened, lookErr := s.happened(context.WithoutCancel(ctx))
	switch {
	case lookErr != nil:
		return nil, fmt.Errorf("%w, and what it has done cannot be found out: %w", err, lookErr)
	case happened:
		return nil, nil
	}
	return nil, err
}

// settleLater undoes, when a process that was left to itself has ended, what its step has done. Until then anything
// may change at any time.
func (b *Backend) settleLater(ctx context.Context, lost *lostError, s step) {
	ctx = context.WithoutCancel(ctx) // the command ends when it ends
	b.volumes.doubtWhile(true)
	settled := make(chan struct{})
	lost.settled = settled
	go func() {
		defer close(settled)
		<-lost.ended
		happened, err := s.happened(ctx)
		if err == nil && happened && s.undo != nil {
			err = s.undo(ctx)
		}
		b.volumes.doubtWhile(false)
		b.log.Warn("zfs: a command has ended that was left to itself", "command", s.args, "happened", happened, "error", err)
	}()
}

// after calls f when nothing is under way any more that err says was left to itself, which as a rule is now. Else it
// returns at once.
func (b *Backend) after(err error, f func() error) error {
	var lost *lostError
	if !errors.As(err, &lost) || lost.settled == nil {
		return f()
	}
	go func() {
		<-lost.settled
		if err := f(); err != nil {
			b.log.Warn("zfs: after a command that was left to itself", "command", lost.args, "error", err)
		}
	}()
	return nil
}

// isGone is step.happened for what destroys a dataset or snapshot.
func (b *Backend) isGone(name string) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		there, err := b.zfs.exists(name)
		return !there, err
	}
}

// isThere is step.happened for what makes a snapshot.
func (b *Backend) isThere(name string) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) { return b.zfs.exists(name) }
}

// discard destroys what nobody was told of, if it is there.
func (b *Backend) discard(ctx context.Context, name string, options ...string) error {
	there, err := b.zfs.exists(name)
	if err != nil || !there {
		return err
	}
	_, err = b.act(context.WithoutCancel(ctx), step{
		args:     append(append([]string{"destroy"}, options...), name),
		happened: b.isGone(name),
	})
	return err
}
