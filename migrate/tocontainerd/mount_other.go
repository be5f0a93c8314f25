//go:build !linux

package tocontainerd

import (
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

func withTree([]mount.Mount, func(*os.File) error) error { return errdefs.ErrNotImplemented }

func syncTree(*os.File) error { return errdefs.ErrNotImplemented }
