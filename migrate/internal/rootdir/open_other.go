//go:build !linux

package rootdir

import (
	"os"

	"github.com/containerd/errdefs"
)

func openDir(string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

func (d *Dir) open(string, bool) (*os.File, error) { return nil, errdefs.ErrNotImplemented }
