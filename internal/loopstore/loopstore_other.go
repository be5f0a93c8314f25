//go:build !linux

package loopstore

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

var errOtherSystem = fault.New(errdefs.ErrNotImplemented, "loopstore: works on Linux only")

// State says that there is no store.
func (s Store) State() (State, error) { return Absent, nil }

// Make does not work on this system.
func (s Store) Make(context.Context, uint64, bool) (Made, error) { return Made{}, errOtherSystem }

// Room does not work on this system.
func (s Store) Room() (Room, error) { return Room{}, errOtherSystem }

// Mount does not work on this system.
func (s Store) Mount(context.Context) (bool, error) { return false, errOtherSystem }

// Remove does not work on this system.
func (s Store) Remove(context.Context) error { return errOtherSystem }
