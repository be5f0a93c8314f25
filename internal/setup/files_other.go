//go:build !linux

package setup

import (
	"context"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

func lock(context.Context, string) (func(), error) {
	return nil, fault.New(errdefs.ErrNotImplemented, "set-up of a host: it needs Linux")
}

func copyAttributes(*os.File, string, fs.FileInfo) error { return errdefs.ErrNotImplemented }

func hardLinks(fs.FileInfo) uint64 { return 1 }
