//go:build !linux

package tocontainerd

import (
	"os"

	"github.com/containerd/errdefs"
)

func openInTree(*os.File, string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

func isCopy(_, _ *os.File) (bool, error) { return false, errdefs.ErrNotImplemented }
