package sharedroot

import (
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/treeat"
)

// features are abilities of the kernel's overlayfs that the options depend on.
type features struct {
	uuidNull bool // knows the option uuid=null
}

// formatOptions decide the format of an upper. Without them the kernel's configuration and its modules' parameters would
// decide. "userxattr" cannot be turned off: it is off unless it is named.
var formatOptions = []string{"index=off", "metacopy=off", "redirect_dir=off", "nfs_export=off", "xino=off"}

// mountOptions returns the options of an overlay of an upper over a lower. Without a work directory the overlay is
// read-only.
//
// Returns errdefs.ErrInvalidArgument if a path is not absolute, or has a character that separates options or layers.
// Kernels and the programs that pass options on disagree on how to escape these.
func mountOptions(lower, upper, work string, has features) ([]string, error) {
	paths := []string{lower, upper}
	if work != "" {
		paths = append(paths, work)
	}
	for _, path := range paths {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, ",:\\\"\n") {
			return nil, fault.New(errdefs.ErrInvalidArgument,
				`path %s of a layer of an overlay: want an absolute path without commas, colons, backslashes, quotes and newlines`, treeat.Quote(path))
		}
	}
	var options []string
	if work == "" {
		options = []string{"lowerdir=" + upper + ":" + lower}
	} else {
		options = []string{"lowerdir=" + lower, "upperdir=" + upper, "workdir=" + work}
	}
	options = append(options, formatOptions...)
	if has.uuidNull {
		// By default the kernel writes an identity into the upper.
		options = append(options, "uuid=null")
	}
	return options, nil
}
