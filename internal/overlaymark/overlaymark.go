// Package overlaymark reads the marks that overlayfs leaves in the directory of its changes.
package overlaymark

import (
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Space begins the names of the attributes that the kernel's overlayfs has for itself, as root mounts it.
const Space = "trusted.overlay."

// ErrRedirected says that a directory takes its content from below another name, or a file its data.
var ErrRedirected = fault.New(errdefs.ErrNotImplemented, "its content is below another name in a lower layer (overlay redirect)")
