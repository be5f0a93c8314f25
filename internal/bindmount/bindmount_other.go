//go:build !linux

// Package bindmount shows the tree of a layer at other places, by bind mounts, and finds these again.
package bindmount

import (
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

var errOtherSystem = fault.New(errdefs.ErrNotImplemented, "bind mounts: on Linux only")

// Bind does not work on this system.
func Bind(_, _ string, _ bool) error { return errOtherSystem }

// Unmount does not work on this system.
func Unmount(string) error { return errOtherSystem }

// Targets lists nothing on this system.
func Targets(_, _, _ string) ([]string, error) { return nil, nil }

// Named does not work on this system.
func Named(_, _, _ string) (string, error) { return "", errOtherSystem }

// Holders finds nothing on this system.
func Holders(string) []string { return nil }
