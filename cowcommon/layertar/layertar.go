// Package layertar turns a change set into a layer tar and a layer tar into a tree, compatible with what
// Docker and containerd read and write, and deterministic: the same change set gives the same bytes.
//
// A layer tar is the "layer filesystem changeset" of the OCI image specification (layer.md): an ordinary
// tar of what was added and changed, in which an empty file ".wh.<name>" (a whiteout) says that <name> was
// removed, and ".wh..wh..opq" that nothing below the directory is left of what lower layers put there.
//
// # Writing
//
// [Write] gives the format of go-archive's ExportChanges: entries sorted by the bytes of their paths, PAX
// headers, names relative to the root, directories ending in "/", times in whole seconds, neither access
// nor change times, no user and group names. The first name of an inode carries the data, later ones are
// hard links to it; a new link to a file that is not in the change set is a full copy. Sockets are left
// out, since tar has no form for them.
//
// It differs on purpose in these points:
//
//   - Whiteouts are stamped with the epoch (1970 or WriteOptions.Epoch), not with the present.
//   - Extended attributes are kept that peers drop: user.*, trusted.* and POSIX ACLs, besides
//     security.capability (a version 3 capability becomes version 2, as there). Attributes that say
//     something about the host or its filesystem are left out: everything else in security.* and system.*,
//     btrfs.*, and what overlay filesystems and Cowshed record for themselves. An attribute whose name
//     holds "=", which a PAX record cannot express, is left out and logged.
//   - An error is an error. Nothing that changed or vanished is passed over, and no part of a file's extended
//     attributes: with more names of them than the kernel lists, it is [ErrManyXattrs].
//   - A file whose name begins with ".wh." cannot be told from a whiteout. Docker exports it as it is, and
//     the image then lacks whatever the name happens to hide. Here it is [ErrReservedName]. The removal of
//     such a file is left out: it was never part of a layer.
//   - Hard links are told by device and inode number, so that files of a nested subvolume or another mount
//     are not taken for links.
//
// # Applying
//
// [Apply] does what go-archive's UnpackLayer does in a chroot: entries replace what is there unless both
// are directories; missing parents are made with mode 0755; names and symbolic links resolve inside the
// root; owner, extended attributes, mode and times are set in this order, and those of directories' times
// last; ".wh..wh." names at the root other than the opaque marker are skipped, except that files below
// ".wh..wh.plnk" can be the target of a hard link, which is then a copy; access times are the later of the
// access and modification times; times before 1970 and after 2262 become 1970; EPERM on an extended
// attribute is tolerated. Both are logged, and so are times that the filesystem cannot hold, in whose place the
// kernel sets the nearest. Hard links need a target that exists before them.
//
// It differs on purpose in these points:
//
//   - An opaque marker keeps directories that hold something this layer wrote, also when they have no entry
//     of their own. It does nothing else to them.
//   - The whiteouts ".wh.", ".wh.." and ".wh...", which name nothing, the directory or its parent, are
//     errors (go-archive removes the directory for the first two; containerd has the error).
//   - A directory that a later entry removed or replaced has no times to be set (go-archive fails).
//   - PAX global headers are ignored entirely (peers remove a file that has the name of the header).
//   - Old GNU sparse files (type S) are accepted. Holes of any sparse entry, and runs of zeros in a large
//     file, become holes.
//   - Files get the ACL that the layer gives them or none, never one inherited from a default ACL: default
//     ACLs are set last, with the times of directories. With an id mapping the ids in ACLs are mapped too.
//   - Extended attributes of a symbolic link are set on the link (go-archive: on what it points to).
//   - Device numbers, ids, names and sizes that the kernel would cut short are errors.
//   - A hard link to itself is an error before anything is removed.
//   - A symbolic link that leads above the root stops there, also where a path through it leads to nothing
//     and is made (go-archive refuses that).
//
// Nothing outside the root is touched, whatever the tar holds: the kernel is only ever asked for a single
// name relative to a directory descriptor, without following symbolic links. Memory is bounded by the
// number of entries, not by their sizes. Every error that an entry causes is an [EntryError].
//
// Times are set with utimensat; mode bits, owners and times that already fit are not set again. Nothing is
// synced: that is the business of the caller.
package layertar

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/moby/sys/user"
)

// ErrReservedName says that a file's name begins with ".wh.", so that no layer tar can hold it.
var ErrReservedName = errors.New("a name that begins with .wh. stands for a whiteout in a layer")

// ErrTooLarge says that a layer holds more than ApplyOptions.MaxBytes.
var ErrTooLarge = errors.New("layer is larger than allowed")

// ErrManyXattrs says that the names of a file's extended attributes fill more than the 64 KiB that the kernel lists.
var ErrManyXattrs = errors.New("more than 64 KiB of names of extended attributes, which the kernel does not list: remove some")

// ErrMalformed says that a tar breaks its own format or asks for what no filesystem could keep.
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

// Live is a tree of which a snapshot is written. Where a file there is, by its inode number, size and change time,
// still the one in the snapshot, its data is read there: btrfs caches data by inode, so what was written or read in
// the live tree would have to come from the device again for the snapshot. What is written does not depend on it.
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
	// LooseEnd ends the tar where GNU tar does: at one block of zeros, where two should be, and at less than a block in
	// place of a header. Without it, what follows a single block of zeros and a header that is cut off are errors.
	LooseEnd bool
	// Report is filled in if all of the layer is applied. nil: nothing is reported.
	Report *ApplyReport
	// MaxBytes bounds the sum of the sizes in the headers (ErrTooLarge). 0: no bound.
	MaxBytes int64
	// Logger receives one warning for all attributes that were left out, one for those of them that are file
	// capabilities, and one for all times that were replaced. nil: slog.Default().
	Logger *slog.Logger
}

// ApplyReport says what a layer was like.
type ApplyReport struct {
	// Overwritten: an entry replaced or removed something that an earlier entry of the layer had made, or had led through,
	// so that data which the tar has may not be in the tree, or not by its name.
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
	// BestEffortXattrs leaves out those and what the caller may not set.
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
		return fmt.Sprintf("entry %d, %s: %v", e.Index, quoteName(e.Name), e.Err)
	case e.After != "":
		return fmt.Sprintf("entry %d, after %s: %v", e.Index, quoteName(e.After), e.Err)
	}
	return fmt.Sprintf("entry %d: %v", e.Index, e.Err)
}

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// quoteName makes a name fit for a message: on one line and of bounded length.
func quoteName(name string) string {
	const most = 256
	if len(name) <= most {
		return strconv.Quote(name)
	}
	return strconv.Quote(name[:most]) + "…"
}
