//go:build !linux

package loopstore

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

var errOtherSystem = fmt.Errorf("loopstore: works on Linux only: %w", errdefs.ErrNotImplemented)

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
