// Package treecopy makes one tree like another. The changes are those that a comparison has listed, or those that an
// overlay filesystem keeps in a directory. Data is shared by reflink where the filesystem can, and copied elsewhere.
//
// A file in dst gets all of its file in src: type, content with its holes, owner, mode, times to the nanosecond and
// extended attributes, which are security.capability, POSIX ACLs, user.* and trusted.*. Attributes that it had before
// and that src does not have go. Records of Cowshed (trusted.cowshed.*) are not copied, nor the attributes that are marks
// in a directory of changes. Names of one inode are hard links in dst too, if the copy has all of them. The root of dst
// gets the attributes of the root of src.
//
// # What is safe
//
// Each system call names a single component relative to a directory descriptor, and follows no symbolic link. So
// nothing outside the two trees is read or changed, whatever they hold: a symbolic link in the place of a directory is
// unix.ENOTDIR. Memory is bounded by the number of changes, or of hard links, and by the depth of the tree, and open
// descriptors by a constant. Nobody else may change the trees meanwhile.
//
// After an error dst has a part of the changes, so the caller makes dst under a temporary name. Nothing is synced.
package treecopy

import (
	"context"
	"log/slog"
	"os"
	"strings"

	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/overlaymark"
)

// Options says how trees are copied. The zero value is usable.
type Options struct {
	// Logger receives one warning for all attributes that dst's filesystem cannot take. nil: slog.Default().
	Logger *slog.Logger
}

// Report is the work that a copy has done.
type Report struct {
	Files     int64 // names that were made or changed, of any kind
	Removed   int64 // names that were removed; a tree counts once
	Reflinked int64 // bytes of the files that share their data with src
	Copied    int64 // bytes of data that were copied
}

// ErrRedirected says that a directory of an overlay takes its content from below another name, or a file its data. The
// changes alone do not tell the tree then. The caller can mount the overlay, and copy the tree that it shows. It is also
// an errdefs.ErrNotImplemented.
var ErrRedirected = overlaymark.ErrRedirected

// Marks says how a directory of changes says that names are gone.
type Marks int

const (
	// OverlayMarks are those of the kernel's overlayfs as root mounts it, in trusted.overlay.*. A removed name is a
	// character device 0:0, or an empty file with the attribute "whiteout". A directory with the attribute "opaque" "y"
	// hides the directory below. A file with the attribute "metacopy" has its data in the layer below. Files whose names
	// begin with ".wh." are ordinary files.
	OverlayMarks Marks = iota
	// FuseOverlayMarks are those of fuse-overlayfs: OverlayMarks, the same in user.overlay.* and user.fuseoverlayfs.*, and
	// AufsMarks.
	FuseOverlayMarks
	// AufsMarks are files: .wh.NAME for a removed name, and .wh..wh..opq in a directory that hides the directory below.
	// Other names that begin with .wh..wh. are the filesystem's own, and ignored.
	AufsMarks
)

// Spaces begin the names of the attributes that are marks.
func (m Marks) Spaces() []string {
	switch m {
	case OverlayMarks:
		return []string{overlaymark.Space}
	case FuseOverlayMarks:
		return []string{overlaymark.Space, "user.overlay.", "user.fuseoverlayfs."}
	}
	return nil
}

// IsContent reports whether Merge copies an extended attribute of a directory of changes.
func (m Marks) IsContent(name string) bool {
	for _, space := range m.Spaces() {
		if strings.HasPrefix(name, space) {
			return false
		}
	}
	return IsContent(name)
}

// IsContent reports whether Copy copies an extended attribute.
func IsContent(name string) bool { return filemeta.IsContent(name) }

// Copy makes each changed name in dst as it is in src. A name of a Delete is removed, with all that is below it. A
// directory of an Add or Modify gets its attributes and keeps its content. Another file is made anew, in place of
// anything that has its name. changes are those of treediff.Compare of src with dst; each parent directory exists in
// dst, or is among them.
//
// Returns errdefs.ErrInvalidArgument if a path is not absolute and clean, before anything is changed.
func Copy(ctx context.Context, dst, src *os.File, changes []archive.Change, opts Options) (Report, error) {
	return copyChanges(ctx, dst, src, changes, opts)
}

// Merge applies the changes that the directory src holds to dst, the tree that they were made from. Afterwards dst is
// the tree that the overlay of both would show.
//
// Where a whiteout and a file have one name, the file stays, and hides all that was below.
//
// Returns [ErrRedirected] if a directory or file of the overlay was moved without its content. Returns
// errdefs.ErrInvalidArgument if a whiteout names nothing, the directory or its parent.
func Merge(ctx context.Context, dst, src *os.File, form Marks, opts Options) (Report, error) {
	return merge(ctx, dst, src, form, opts)
}

// Overlay writes the changes of src into the empty directory dst, in the form that overlayfs reads: [OverlayMarks] with
// character devices 0:0, as dst's filesystem keeps them. Directories on the way are made as they are in src. The cost
// is in proportion to the changes.
//
// A character device 0:0 of src is copied like any other, and means a whiteout in dst.
//
// Returns errdefs.ErrInvalidArgument if a path is not absolute and clean, before anything is changed.
func Overlay(ctx context.Context, dst, src *os.File, changes []archive.Change, opts Options) (Report, error) {
	return overlay(ctx, dst, src, changes, opts)
}
