//go:build !linux

package migrate

import (
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

type lockFile struct{}

func lockState(string) (*lockFile, error) {
	return nil, fault.New(errdefs.ErrNotImplemented, "migrating needs Linux")
}

func (*lockFile) delete() error  { return nil }
func (*lockFile) release() error { return nil }
