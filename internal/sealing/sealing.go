// Package sealing seals volumes, and lets callers rely on a seal. docs/architecture.md, "The states of a volume", draws
// the states.
package sealing

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
)

// State is the state of a volume that nobody uses. While a claim moves a volume from one state to another, nobody can
// use it.
type State uint8

// States of a volume. A doomed volume is hidden from everybody, and about to be destroyed.
const (
	Writable State = iota
	Sealed
	Doomed
)

// Held is a volume that stays in its state until Done. V is the filesystem's own type for the source of a clone.
type Held[V any] struct {
	Volume V
	State  State
	// Done gives the volume up. If cause says that a step was left to itself, Done returns at once. The volume is then
	// given up when that step has ended.
	Done func(cause error) error
	// Move brings a claimed volume into another state. Nothing else does. changed is false if the volume is, for
	// certain, in its former state.
	Move func(ctx context.Context, to State) (changed bool, err error)
}

// Volumes are the volumes of a Backend, and its operations on them.
type Volumes[V any] struct {
	// Use counts a brief use of a volume.
	Use func(ctx context.Context, name string) (Held[V], error)
	// Claim takes a volume for the caller alone. Returns ErrFailedPrecondition if somebody uses it.
	Claim func(ctx context.Context, name string) (Held[V], error)
	// CloneInUse calls clone with a volume that somebody uses, as it is at this moment.
	CloneInUse func(ctx context.Context, name string, clone func(V) error) error
	// After calls f. If cause says that a step was left to itself, After returns at once, and f is called when that
	// step has ended.
	After func(cause error, f func() error) error
}

// Rely seals a volume, unless it is sealed, and calls rely with the volume and its state before. Nobody can undo the
// seal until rely returns. If rely fails, a seal that was set for it is undone.
//
// Returns ErrFailedPrecondition if the volume is writable and in use: a process with a descriptor that is open for
// writing would go on writing. rely is not called then.
func (v Volumes[V]) Rely(ctx context.Context, name string, rely func(volume V, before State) error) error {
	used, err := v.Use(ctx, name)
	if err != nil {
		return err
	}
	if used.State == Sealed {
		err = rely(used.Volume, Sealed)
		return errors.Join(err, used.Done(err))
	}
	if err := used.Done(nil); err != nil {
		return err
	}

	claimed, err := v.Claim(ctx, name)
	if err != nil {
		return err
	}
	changed, err := claimed.Move(ctx, Sealed)
	if err == nil {
		err = rely(claimed.Volume, claimed.State) // somebody may have sealed it meanwhile
	}
	return errors.Join(err, v.After(err, func() error {
		if err == nil || !changed {
			return claimed.Done(err)
		}
		_, undoErr := claimed.Move(context.WithoutCancel(ctx), Writable)
		return errors.Join(undoErr, claimed.Done(undoErr)) // the undo may be under way too
	}))
}

// Clone calls clone with the source of a clone. This is a sealed volume, as by Rely, or a volume that somebody uses, as
// it is at this moment.
func (v Volumes[V]) Clone(ctx context.Context, source string, clone func(V) error) error {
	called := false
	err := v.Rely(ctx, source, func(volume V, _ State) error {
		called = true
		return clone(volume)
	})
	if called || !errdefs.IsFailedPrecondition(err) {
		return err
	}
	return v.CloneInUse(ctx, source, clone)
}
