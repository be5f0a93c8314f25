// Package trees compares directory trees in everything that a layer carries: names, types, modes, owners, times,
// extended attributes, device numbers, hard links and bytes. It follows no symbolic link and opens no device.
package trees

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/migrate"
)

// maxDepth bounds the descriptors that are open at once, three for each level.
const maxDepth = 4096

// maxAttributes bounds the memory for the extended attributes of a file, of which Linux allows 64 KiB.
const maxAttributes = 64 << 10

var errTooDeep = fault.New(errdefs.ErrResourceExhausted, "directories are nested more than %d deep", maxDepth)

// Changes lists the changes that make the tree at from equal to the tree at to, in the form and order of
// treediff.Compare. It finds more than that: differences of extended attributes, of the times of directories, and of the
// bytes of files whose size and time are equal. Layers of images often have these: all times are those of the build. The
// root itself is not listed.
func Changes(ctx context.Context, to, from *os.File) ([]archive.Change, error) {
	return changes(ctx, to, from)
}

// Verify compares the tree of a new layer with its source. got is the tree of the layer, and want the directory of the
// source in the form that form says. base is the tree that the layer was made from, nil if there was none; a source
// that is Whole needs none.
//
// Returns errdefs.ErrDataLoss with the first difference.
func Verify(ctx context.Context, got, want, base *os.File, form migrate.Form) error {
	return verify(ctx, got, want, base, form)
}

// difference is the error for trees that differ.
func difference(path, format string, args ...any) error {
	return fault.New(errdefs.ErrDataLoss, "%q differs from the source: %s", "/"+path, fmt.Sprintf(format, args...))
}

// Marks of directories of changes.
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaqueMark     = ".wh..wh..opq"
)

// marksOf are the marks of a directory of changes in a form.
func marksOf(form migrate.Form) treecopy.Marks {
	switch form {
	case migrate.FuseOverlay:
		return treecopy.FuseOverlayMarks
	case migrate.Overlay:
		return treecopy.OverlayMarks
	}
	return treecopy.AufsMarks
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// Size is the sum of the sizes of the regular files below a directory, in bytes. A file with several names counts once.
func Size(ctx context.Context, dir *os.File) (int64, error) { return size(ctx, dir) }
