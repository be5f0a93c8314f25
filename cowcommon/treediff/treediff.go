// Package treediff compares two directory trees and lists the changes between them, by the rules of Docker and
// containerd for a layer's change list.
//
// There is one comparer and two ways to aim it. Without hints both trees are walked. With hints, which a
// copy-on-write filesystem can give, only the hinted names are looked at. Hints nominate, the comparer decides: a
// wrong or needless hint costs time and changes nothing.
//
// # Changes
//
// The list is that of ChangesDirs in github.com/moby/go-archive:
//
//   - A name that only top has is an Add, and so is each name below it.
//   - A name that only base has is a Delete. Names below it are not listed.
//   - A name that both have is a Modify if type, mode, owner, group, device number or the extended attribute
//     security.capability differ. Unless it is a directory, it is also a Modify if size or time of modification
//     differ. Two times are equal if they are identical, or if the seconds agree and either has no nanoseconds.
//   - A directory that became something else is one Modify. Something else that became a directory is a Modify, and
//     each name in it an Add.
//   - A directory with a change in it is itself a Modify if it is nothing else. The root is never listed.
//
// Sockets and names that look like whiteouts are listed as any other: their form in a layer tar is not decided here.
//
// # Boundaries inside a tree
//
// Mounts and nested subvolumes are part of the tree in which they are visible: they are entered and compared like any
// directory. Inode numbers mean nothing there, so with hints such a directory is compared in full once a hint leads
// to it. Native streams and diffs end at a boundary. A source of hints adds a hint, marked Deep, for each mount or
// nested subvolume of either tree.
//
// # Trees that change meanwhile
//
// Trees should be frozen, but need not be. A name that vanishes meanwhile counts as absent, and a name whose type
// changes meanwhile counts as changed. Every name is looked up in the descriptor of its directory, and symbolic links
// are not followed. So the comparison never leaves the trees, except through mounts.
package treediff

import (
	"context"
	"errors"

	"github.com/moby/go-archive"
)

// Compare lists the changes that turn the tree base into the tree top, sorted by the bytes of the paths. Paths are
// absolute in the tree ("/a/b"). The package documentation has the rules. Both trees are given by their root
// directories; base "" is the empty tree, of which all of top is an Add.
//
// Without hints both trees are read completely. With hints, the cost is in proportion to the number of hints,
// whatever the size of the trees. The trees must share inode numbers, because one was cloned from the other.
//
//   - A directory on the way to a hinted path is looked at on both sides. If it has the same inode on both, only
//     the hinted names in it are.
//   - A directory that only one tree has, that is another inode in each, that is hinted [Deep], or that lies on
//     another mount or subvolume than the root is compared in full.
//   - A regular file that seems equal but is hinted [Written], or is another inode in each tree, is a Modify if its
//     bytes differ, and a symbolic link likewise if its target does.
//
// So the list is that of the walk, and besides each file whose content differs although size and time of modification
// agree.
//
// Errors are those of the filesystem with the path they belong to (*fs.PathError), [ErrTooLarge], and the context's.
// Descriptors and goroutines are bounded in number and all gone on return. Off Linux the error is
// errors.ErrUnsupported.
func Compare(ctx context.Context, top, base string, hints *Hints) ([]archive.Change, error) {
	return compare(ctx, top, base, hints, 0)
}

// Extra says which differences count besides those of a layer's change list.
type Extra uint8

const (
	// Xattrs makes a name a Modify whose extended attributes or ACLs differ. Those count that treecopy copies.
	Xattrs Extra = 1 << iota
	// Times makes a name a Modify whose time of modification differs at all, also that of a directory.
	Times
)

// CompareMore is [Compare] for a caller that makes base like top: more differences count than for a layer.
func CompareMore(ctx context.Context, top, base string, hints *Hints, extra Extra) ([]archive.Change, error) {
	return compare(ctx, top, base, hints, extra)
}

// Size adds up the sizes in bytes of the regular files of top that changes lists as Add or Modify. An inode counts
// once however many of its names are listed. A file that is gone counts nothing.
//
// The result is the sum of the sizes in the headers of a layer tar of these changes. ChangesSize in
// github.com/moby/go-archive adds the lengths of symbolic links' targets.
//
// Errors are as for [Compare].
func Size(ctx context.Context, top string, changes []archive.Change) (int64, error) {
	return size(ctx, top, changes)
}

// ErrTooLarge says that the paths of a change list add up to more than a gigabyte. This takes very many changes, or
// directories nested many thousand deep.
var ErrTooLarge = errors.New("change list too large")

// ErrNoHints says that the filesystem cannot tell where two trees differ, so that they must be walked.
// It is matched with errors.Is; the reason is a [NoHintsError].
var ErrNoHints = errors.New("no hints")

// NoHintsError is ErrNoHints with its reason.
type NoHintsError struct {
	Reason string // short, of few distinct values, fit for a metric label: "permission", "unrelated", "dedupe", "orphan", …
	Err    error  // the detail; may be nil
}

// Error implements error.
func (e *NoHintsError) Error() string {
	if e.Err == nil {
		return "no hints: " + e.Reason
	}
	return "no hints: " + e.Reason + ": " + e.Err.Error()
}

// Is reports whether target is ErrNoHints.
func (e *NoHintsError) Is(target error) bool { return target == ErrNoHints }

// Unwrap returns the detail.
func (e *NoHintsError) Unwrap() error { return e.Err }

// WithoutHints gives the error of a source of hints the type [*NoHintsError], with that reason unless it has a reason
// already. An error of the end of ctx stays as it is, since nobody waits for a walk then.
func WithoutHints(ctx context.Context, reason string, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrNoHints) {
		return err
	}
	return &NoHintsError{Reason: reason, Err: err}
}
