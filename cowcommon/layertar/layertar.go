// Package layertar turns a change set into a layer tar and a layer tar into a tree. It is compatible with Docker and
// containerd, and deterministic: the same change set gives the same bytes.
//
// A layer tar is the "layer filesystem changeset" of the OCI image specification (layer.md): an ordinary tar of added
// and changed files. An empty file ".wh.<name>" (a whiteout) says that <name> was removed. ".wh..wh..opq" in a
// directory hides all that lower layers put there.
//
// # Writing
//
// [Write] gives the format of go-archive's ExportChanges: entries sorted by the bytes of their paths, PAX headers,
// names relative to the root, directories ending in "/", and times in whole seconds. There are neither access nor
// change times, nor user and group names. The first name of an inode carries the data, later ones are hard links to
// it; a new link to a file that is not in the change set is a full copy. Sockets are left out, since tar has no form
// for them.
//
// It differs on purpose in these points:
//
//   - Whiteouts are stamped with the epoch (1970 or WriteOptions.Epoch), not with the present.
//   - Write keeps extended attributes that peers drop: user.*, trusted.* and POSIX ACLs, besides
//     security.capability (a version 3 capability becomes version 2, as there). Attributes that say something about
//     the host or its filesystem are left out: everything else in security.* and system.*, btrfs.*, and records of
//     overlay filesystems and of Cowshed. An attribute whose name holds "=", which a PAX record cannot express, is
//     left out and logged.
//   - An error is an error. Write ignores no file that changed or vanished, and no part of a file's extended
//     attributes. Returns [ErrManyXattrs] if a file has more names of them than the kernel lists.
//   - A file whose name begins with ".wh." cannot be told from a whiteout. Docker exports it as it is, and the
//     image then lacks a file that the name happens to hide. Here it is [ErrReservedName]. The removal of such a
//     file is left out: it was never part of a layer.
//   - The name .cowshed at the root is Cowshed's own: [ErrCowshedName].
//   - Hard links are told by device and inode number, so that files of a nested subvolume or another mount are not
//     taken for links.
//
// # Applying
//
// [Apply] works like go-archive's UnpackLayer in a chroot:
//
//   - Entries replace existing files unless both are directories. Missing parents are made with mode 0755.
//   - Names and symbolic links resolve inside the root. Hard links need a target that exists before them.
//   - Owner, extended attributes, mode and times are set in this order, and times of directories last.
//   - Names at the root that begin with ".wh..wh." are skipped, except the opaque marker. Files below
//     ".wh..wh.plnk" can be the target of a hard link, which is then a copy.
//   - Access times are the later of the access and modification times. Times before 1970 and after 2262 become
//     1970. In place of a time that the filesystem cannot hold, the kernel sets the nearest. Replaced times are
//     logged.
//   - EPERM on an extended attribute is tolerated, and logged.
//
// It differs on purpose in these points:
//
//   - An opaque marker keeps directories with files of this layer, also when they have no entry of their own. It
//     does nothing else to them.
//   - The whiteouts ".wh.", ".wh.." and ".wh..." are errors: they name nothing, the directory or its parent.
//   - An entry .cowshed at the root, or below it, is [ErrCowshedName]. Its whiteout is like any other.
//     go-archive removes the directory for the first two; containerd has the error.
//   - A directory that a later entry removed or replaced has no times to be set (go-archive fails).
//   - PAX global headers are ignored entirely (peers remove a file that has the name of the header).
//   - Old GNU sparse files (type S) are accepted. Holes of any sparse entry, and runs of zeros in a large file,
//     become holes.
//   - Files get the ACL that the layer gives them or none, never one inherited from a default ACL: default ACLs are
//     set last, with the times of directories. With an id mapping the ids in ACLs are mapped too.
//   - Extended attributes of a symbolic link are set on the link (go-archive: on its target).
//   - Device numbers, ids, names and sizes that the kernel would cut short are errors.
//   - A hard link to itself is an error before anything is removed.
//   - A symbolic link that leads above the root stops there, also where a path through it leads to nothing and is
//     made (go-archive refuses that).
//
// Nothing outside the root is touched, whatever the tar holds. Each system call names a single component relative to
// a directory descriptor, and follows no symbolic link. Memory is bounded by the number of entries, not by their
// sizes. Every error that an entry causes is an [EntryError].
//
// Times are set with utimensat; mode bits, owners and times that already fit are not set again. Nothing is synced:
// that is the business of the caller.
package layertar

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// ErrReservedName says that a file's name begins with ".wh.", so that no layer tar can hold it.
var ErrReservedName = errors.New("a name that begins with .wh. stands for a whiteout in a layer")

// ErrCowshedName says that a file is /.cowshed, or below it. Volumes of root style "shared" have a directory of Cowshed's
// own there. So no layer has such a file, whether it is written or applied.
var ErrCowshedName = errors.New("/" + sharedmark.Dir + " is a name of Cowshed's own: rename the file")

// ErrTooLarge says that a layer holds more than ApplyOptions.MaxBytes.
var ErrTooLarge = errors.New("layer is larger than allowed")

// ErrManyXattrs says that the names of a file's extended attributes fill more than the 64 KiB that the kernel lists.
var ErrManyXattrs = errors.New("more than 64 KiB of names of extended attributes, which the kernel does not list: remove some")

// ErrMalformed says that a tar breaks its own format, or describes a file that no filesystem could keep.
var ErrMalformed = errors.New("malformed layer")

// WriteOptions says how a change set is written. The zero value is usable.
type WriteOptions struct {
	// IDMap maps the ids of the tree (host) to those in the tar (container). An id that is not mapped is
	// an error.
	IDMap user.IdentityMapping
	// Epoch is the value of SOURCE_DATE_EPOCH: the time of whiteouts, and an upper bound for the times of
	// all other entries. nil: whiteouts are stamped 1970, times are not bounded.
	Epoch *time.Time
	// Live is the tree that the one to be written is a snapshot of, or nil.
	Live *Live
	// Workers is the number of goroutines that read ahead. 0: a number that suits the machine.
	Workers int
	// Logger receives a warning for each attribute that could not be written. nil: slog.Default().
	Logger *slog.Logger
}

// Live is a tree of which a snapshot is written. If a file there still has the snapshot's inode number, size and
// change time, its data is read there. Btrfs caches data by inode, so for the snapshot the same data would have to
// come from the device again. The output does not depend on Live.
type Live struct {
	Root     *os.File  // a directory, which stays the caller's
	Snapshot time.Time // no later than when the snapshot was taken
}

// ApplyOptions says how a layer is applied. The zero value is usable.
type ApplyOptions struct {
	// IDMap maps the ids in the tar (container) to those of the tree (host). An id that is not mapped is
	// an error.
	IDMap user.IdentityMapping
	// Xattrs says which extended attributes may be left out. How many were is logged.
	Xattrs XattrPolicy
	// Empty is the caller's word that the tree is an empty directory, so that nothing needs to be looked
	// up before it is created. If that is wrong, an entry that meets something is an error (EEXIST).
	Empty bool
	// Workers is the number of goroutines that write files. 0: a number that suits the machine.
	Workers int
	// LooseEnd ends the tar where GNU tar does: at one block of zeros, where two should be, and at less than a block
	// in place of a header. Without it, bytes after a single block of zeros are errors, and so is a header that is
	// cut off.
	LooseEnd bool
	// Report is filled in if all of the layer is applied. nil: nothing is reported.
	Report *ApplyReport
	// MaxBytes bounds the sum of the sizes in the headers (ErrTooLarge). 0: no bound.
	MaxBytes int64
	// Logger receives at most three warnings: for all attributes that were left out, for file capabilities among
	// them, and for all times that were replaced. nil: slog.Default().
	Logger *slog.Logger
}

// ApplyReport describes an applied layer.
type ApplyReport struct {
	// Overwritten: an entry replaced or removed a file that an earlier entry of the layer had made or had led
	// through. So data of the tar may be missing from the tree, or have another name there.
	Overwritten bool
}

// XattrPolicy says which extended attributes of a layer are left out. One for which there is no space is an error always.
type XattrPolicy int

const (
	// ExactXattrs leaves out none, apart from those that Linux gives to no file of the kind, as user.* to a device.
	ExactXattrs XattrPolicy = iota
	// SupportedXattrs leaves out those that the filesystem cannot take, of a namespace that it does not have, and ACLs that are
	// malformed.
	SupportedXattrs
	// BestEffortXattrs leaves out those, and attributes that the caller may not set.
	BestEffortXattrs
)

// EntryError is an error that one entry of a layer caused.
type EntryError struct {
	Index int64  // of the entry in the tar, from 0
	Name  string // as it stands in the header; "" if the header could not be read
	After string // the entry before, if Name is ""
	Err   error
}

// Error implements error.
func (e *EntryError) Error() string {
	switch {
	case e.Name != "":
		return fmt.Sprintf("entry %d, %s: %v", e.Index, treeat.Quote(e.Name), e.Err)
	case e.After != "":
		return fmt.Sprintf("entry %d, after %s: %v", e.Index, treeat.Quote(e.After), e.Err)
	}
	return fmt.Sprintf("entry %d: %v", e.Index, e.Err)
}

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }
