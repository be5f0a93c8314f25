// Package loopstore keeps a btrfs in an image file next to the directory that it is mounted on. It is for hosts where
// that directory is on another filesystem.
//
// For the directory /var/lib/cowshed the image is /var/lib/cowshed.img. It is a sparse file: it takes space for its
// content, and gives back the space of deleted files. An image that this package made has the filesystem label
// "cowshed-store" in its superblock; no other file is ever mounted, changed or deleted.
package loopstore

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Label is the filesystem label of the images that this package makes.
const Label = "cowshed-store"

// MinSize is the least size of an image in bytes: with less, btrfs has hardly any room left for data.
const MinSize = 256 << 20

// Store is a directory and the image that is, or could be, mounted on it.
type Store struct {
	Root  string // absolute
	Image string
}

// At returns the store of the directory root, which need not be there.
func At(root string) (Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Store{}, err
	}
	// The kernel lists mounts by their real path.
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real
	} else if parent, err := filepath.EvalSymlinks(filepath.Dir(root)); err == nil {
		root = filepath.Join(parent, filepath.Base(root))
	}
	if root == "/" {
		return Store{}, fmt.Errorf("the root directory cannot be a store")
	}
	return Store{Root: root, Image: root + ".img"}, nil
}

// State says how far a store is there.
type State int

const (
	// Absent says that there is no image.
	Absent State = iota
	// Detached says that there is an image, and it is not mounted on the directory.
	Detached
	// Mounted says that the image is mounted on the directory.
	Mounted
)

// String implements fmt.Stringer.
func (s State) String() string {
	switch s {
	case Absent:
		return "absent"
	case Detached:
		return "not mounted"
	case Mounted:
		return "mounted"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// ErrNoRoom says that an image would exceed the room of its filesystem. When that is full before the image is, writes
// in the image fail, and the kernel makes the btrfs in it read-only.
var ErrNoRoom = fault.New(errdefs.ErrFailedPrecondition, "the store could not be filled")

// Room compares the possible growth of a store with the free space, in bytes.
type Room struct {
	MayTake uint64 // of the image that is not allocated
	Free    uint64 // in the filesystem that the image is on
}

// Made is the result of Make.
type Made struct {
	Image bool   // the image was made
	Grown bool   // it was there, and was made larger
	Mount bool   // it was mounted
	Size  uint64 // the present size of the image, in bytes
}
