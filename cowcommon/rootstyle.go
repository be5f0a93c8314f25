package cowcommon

import (
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// RootStyle is the structure of a mounted volume's tree.
type RootStyle string

const (
	// DefaultRoot names no style. A clone without a style has SnapshotRoot.
	DefaultRoot RootStyle = ""
	// SnapshotRoot is the volume itself: a copy-on-write clone of the image.
	SnapshotRoot RootStyle = "snapshot"
	// SharedRoot is an overlay of the volume over the image, so that all containers of the image share one page cache.
	SharedRoot RootStyle = "shared"
)

// ParseRootStyle reads the name of a style. Returns errdefs.ErrInvalidArgument if there is no such style.
func ParseRootStyle(name string) (RootStyle, error) {
	switch style := RootStyle(name); style {
	case SnapshotRoot, SharedRoot:
		return style, nil
	}
	return DefaultRoot, fault.New(errdefs.ErrInvalidArgument, "root style %q: use %q or %q", name, SnapshotRoot, SharedRoot)
}

// CheckRoot returns errdefs.ErrNotImplemented if a clone is to have SharedRoot. Only package sharedroot makes shared
// roots.
func (o VolumeOptions) CheckRoot() error {
	if o.RootStyle == SharedRoot {
		return fault.New(errdefs.ErrNotImplemented, "shared roots are off in this home: open it with the option root_style=%s", SharedRoot)
	}
	return nil
}
