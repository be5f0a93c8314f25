//go:build !linux

package tocontainerd

import (
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate"
)

func openInTree(*os.File, string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

func isCopy([]mount.Mount, *os.File, *migrate.Content) (bool, error) {
	return false, errdefs.ErrNotImplemented
}
