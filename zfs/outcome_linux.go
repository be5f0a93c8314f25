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

// The outcome of a zfs process that was killed, or does not end, is not known until it has been looked at. The kernel
// or another zfs process shows it, never the index.

// step is one run of zfs that changes something.
type step struct {
	args     []string
	in       io.Reader
	inherits []*os.File
	// happened looks whether the step has happened completely. If the step has happened in part, happened removes that
	// part.
	happened func(ctx context.Context) (bool, error)
	// undo takes the step back if it happens after the caller was told that its outcome is not known. nil: the change
	// stays.
	undo func(ctx context.Context) error
}

// act does a step, and returns the output of zfs. Without an error the step has happened. With an error it has not,
// unless the error says that the outcome is not known (see after). The index is doubted if zfs was killed or does not
// end.
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
		return nil, fault.New(errdefs.ErrUnavailable, "its outcome is not known yet, look again later: %w", err)
	}
	b.volumes.doubt()
	happened, lookErr := s.happened(context.WithoutCancel(ctx))
	switch {
	case lookErr != nil:
		return nil, fmt.Errorf("%w, and its outcome cannot be found out: %w", err, lookErr)
	case happened:
		return nil, nil
	}
	return nil, err
}

// settleLater waits in the background for a process that was left to itself. If its step has happened then, settleLater
// undoes it. Until then the index is doubted, since anything may change at any time.
func (b *Backend) settleLater(ctx context.Context, lost *lostError, s step) {
	ctx = context.WithoutCancel(ctx) // the process goes on when the request is cancelled
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
		b.log.Warn("zfs: a command that was left to itself has ended", "command", s.args, "happened", happened, "error", err)
	}()
}

// after calls f. If err says that a process was left to itself, after returns at once. Then f is called when that
// process has ended and its outcome is settled.
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

// isGone is step.happened for steps that destroy a dataset or snapshot.
func (b *Backend) isGone(name string) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		there, err := b.zfs.exists(name)
		return !there, err
	}
}

// isThere is step.happened for steps that make a snapshot.
func (b *Backend) isThere(name string) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) { return b.zfs.exists(name) }
}

// discard destroys a dataset or snapshot that nobody was told of, if it exists.
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
